"""The messages of transcripts: stored form, rendered text and attribution."""
