"""`python -m ssl_hub COMMAND ...`, for launchers that start a module: `accelerate launch -m ssl_hub pretrain ...`."""

from .commands import main

if __name__ == "__main__":
    main()
