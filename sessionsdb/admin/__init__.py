"""What an operator needs: a look at what goes on, a check of the database's health, retention and
backups. Functions over an open database's core; they know nothing of the command line."""
