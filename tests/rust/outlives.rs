// SPDX-License-Identifier: GPL-2.0
//! This must not compile: a reference to a page outlives the page. make tries it, and
//! tests/shell/rust looks at what the compiler says.

use exmap::Exmap;

fn main() {
    let memory = Exmap::open(100, 10, 1, None).unwrap();
    let mut calls = memory.attach().unwrap();
    let mut surface = memory.surface().unwrap();
    let _ = surface.alloc(&mut calls, 0..1);
    let page = surface.page(0).unwrap();
    let _ = surface.free(&mut calls, 0..1);
    println!("{}", page[0]);
}
