//! Black-box tests of the `ampoule` command line that need no sandbox and no root; all of them are in `tests/`.
