"""What is measured, each benchmark a file: ``make bench`` runs those of the worker."""
