"""Methods, tasks, sources and seeds compared: which runs, how long they take, running them once, and what they say."""
