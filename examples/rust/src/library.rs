// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What libexmap.so.1 exports, as far as lib.rs uses it.

use std::os::raw::{c_char, c_int, c_long, c_uint, c_void};

#[link(name = "exmap")]
extern "C" {
    pub static EXMAP_OP_READ: u64;
    pub static EXMAP_OP_ALLOC: u64;
    pub static EXMAP_OP_FREE: u64;
    pub static EXMAP_OP_WRITE: u64;
    pub static EXMAP_SIZE: u64;
    pub static EXMAP_INTERFACE_SIZE: u64;

    pub fn exmap_open(
        exmap: *mut c_void,
        surface_pages: u64,
        pool_pages: u64,
        interfaces: c_uint,
        backing: c_int,
        flags: u64,
    ) -> c_int;
    pub fn exmap_close(exmap: *mut c_void);
    pub fn exmap_address(exmap: *const c_void, page: u64) -> *mut c_void;
    pub fn exmap_sync(exmap: *const c_void) -> c_int;
    pub fn exmap_strerror(err: c_int) -> *const c_char;
    pub fn exmap_attach(exmap: *mut c_void, interface: *mut c_void) -> c_int;
    pub fn exmap_detach(interface: *mut c_void);
    pub fn exmap_run_done(
        interface: *mut c_void,
        opcode: c_uint,
        page: u64,
        pages: u64,
        done: *mut u64,
    ) -> c_long;
}
