"""Does a controller end where a tuned schedule ends? Test tasks, rivals, scores."""
