// SPDX-License-Identifier: GPL-2.0
//! Call everything in the crate exmap (examples/rust). tests/shell/rust runs this.

use exmap::{Exmap, PAGE_SIZE};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::{env, fs, process, thread};

const ENODATA: i32 = 61;
const ENOMEM: i32 = 12;

/// A file of ten pages. Page n is full of bytes n.
fn ten_pages() -> File {
    let path = env::temp_dir().join(format!("exmap-rust-{}", process::id()));
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    for number in 0..10 {
        file.write_all(&[number; PAGE_SIZE]).unwrap();
    }
    file
}

fn pages_are_lent_while_they_are_mapped() {
    let memory = Exmap::open(1 << 28, 10, 1, None).unwrap();
    let mut calls = memory.attach().unwrap();
    let mut surface = memory.surface().unwrap();
    assert!(memory.surface().is_none());
    assert!(surface.page(7).is_none());
    assert_eq!(surface.alloc(&mut calls, 7..9).all().unwrap(), 2);
    assert_eq!(surface.alloc(&mut calls, 6..9).all().unwrap(), 1);
    surface.page_mut(7).unwrap()[5] = 42;
    assert_eq!(surface.page(7).unwrap()[5], 42);
    assert_eq!(surface.free(&mut calls, 0..8).all().unwrap(), 2);
    assert!(surface.page(7).is_none() && surface.page_mut(6).is_none());
    assert!(surface.page(8).is_some());
    let full = surface.alloc(&mut calls, 100..110);
    assert_eq!(full.error.unwrap().raw_os_error(), Some(ENOMEM));
    assert_eq!(full.pages, 9);
    assert!(surface.page(108).is_some() && surface.page(109).is_none());
}

fn files_are_read_and_written() {
    let file = ten_pages();
    let memory = Exmap::open(100, 20, 1, Some(&file)).unwrap();
    let mut calls = memory.attach().unwrap();
    let mut surface = memory.surface().unwrap();
    let end = surface.read(&mut calls, 7..12);
    assert_eq!(end.pages, 3);
    assert_eq!(end.error.unwrap().raw_os_error(), Some(ENODATA));
    assert!(surface.page(9).unwrap().iter().all(|&byte| byte == 9));
    assert!(surface.page(10).is_none());
    surface.page_mut(8).unwrap()[0] = 77;
    assert_eq!(surface.write(&mut calls, 0..100).all().unwrap(), 3);
    memory.sync().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 8 * PAGE_SIZE as u64).unwrap();
    assert_eq!(byte, [77]);
}

fn threads_work_on_parts() {
    let memory = Exmap::open(400, 400, 4, None).unwrap();
    let mut rest = memory.surface().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            let end = rest.range().end;
            let mut part = rest.split_off(end - 100);
            let memory = &memory;
            scope.spawn(move || {
                let mut calls = memory.attach().unwrap();
                assert_eq!(part.alloc(&mut calls, part.range()).all().unwrap(), 100);
                for page in part.range() {
                    part.page_mut(page).unwrap()[0] = page as u8;
                }
                for page in part.range() {
                    assert_eq!(part.page(page).unwrap()[0], page as u8);
                }
                assert_eq!(part.free(&mut calls, part.range()).all().unwrap(), 100);
            });
        }
    });
    assert_eq!(rest.range(), 0..0);
}

fn errors_are_explained() {
    let error = Exmap::open(100, 10, 0, None).err().unwrap();
    assert_eq!(error.errno(), 22);
    assert!(error.to_string().contains("1 to 1024"), "{}", error);
    let memory = Exmap::open(100, 10, 1, None).unwrap();
    let first = memory.attach().unwrap();
    assert!(memory.attach().err().unwrap().to_string().contains("in use"));
    drop(first);
    memory.attach().unwrap();
    assert!(memory.sync().is_err());
}

fn main() {
    pages_are_lent_while_they_are_mapped();
    files_are_read_and_written();
    threads_work_on_parts();
    errors_are_explained();
}
