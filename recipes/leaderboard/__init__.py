"""Tables of results: what is run, what came out, and the pages that show it. See recipes/leaderboard.py."""
