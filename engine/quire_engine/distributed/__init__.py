"""What the processes of one model share out among themselves."""
