"""What is done with a finished run; and checks and measurements of one before it starts."""
