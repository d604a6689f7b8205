#!/bin/sh
# What cargo runs in place of rustc for the crates of this repository (RUSTC_WORKSPACE_WRAPPER) while `cargo xtask fuzz`
# builds. Those that read strangers' bytes are compiled with coverage and comparisons reported to libFuzzer, optimised,
# and with every check of a debug build. No unstable option, so the toolchain of the repository will do.
rustc=$1
shift
case " $* " in
*" --crate-name ampoule_store "* | *" --crate-name ampoule_agent "* | *" --crate-name ampoule_spec "* | \
    *" --crate-name ampoule_journal "* | *" --crate-name ampoule_fuzz "*)
    exec "$rustc" "$@" \
        -Copt-level=3 -Cdebug-assertions=on -Coverflow-checks=on -Ccodegen-units=1 \
        -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$rustc" "$@" ;;
esac
