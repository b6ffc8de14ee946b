"""Background jobs: the store, the life of one worker process, and executors."""
