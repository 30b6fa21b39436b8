"""`python -m controlplane.cli`: the same as `tenantry`, where the console script is not on the path."""

from controlplane.cli.app import main

if __name__ == "__main__":
    main()
