"""What the three surfaces share: the tools and their arguments, the session, and how answers are shown."""
