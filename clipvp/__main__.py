"""``python -m clipvp`` is the console script ``clipvp``."""

from .cli.main import main

if __name__ == "__main__":
    main()
