"""What a model takes in memory and how fast it answers, before it is downloaded."""
