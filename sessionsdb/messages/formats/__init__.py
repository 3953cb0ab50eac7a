"""Foreign forms of messages: how each is told, shown and imported. One file a form."""
