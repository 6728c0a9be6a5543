"""`python -m normscape` is the same as `normscape`."""

from normscape.cli import main

if __name__ == "__main__":
    main()
