//! Prints both digests of a file as the store takes them; `cargo xtask bench import` times it.

use std::fs::File;

fn main() -> std::io::Result<()> {
    for name in std::env::args_os().skip(1) {
        let (sha256, blake3, bytes) = ampoule_store::digests(File::open(&name)?, u64::MAX)?;
        println!("{sha256} {blake3} {bytes} {}", name.display());
    }
    Ok(())
}
