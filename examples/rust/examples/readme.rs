// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The program of the README in Rust.

use exmap::Exmap;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    // 1 TiB of addresses, with at most 1000 pages in memory.
    let memory = Exmap::open(1 << 28, 1000, 1, None)?;
    let mut calls = memory.attach()?;
    let mut surface = memory.surface().expect("nobody else has it");

    println!("{} mapped", surface.alloc(&mut calls, 5000..5100).all()?);
    surface.page_mut(5000).expect("it is mapped")[0] = 42;
    println!("{} freed", surface.free(&mut calls, 5000..5100).all()?);
    Ok(())
}
