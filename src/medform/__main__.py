"""`python -m medform`."""

from medform.cli.main import main

if __name__ == "__main__":
    main()
