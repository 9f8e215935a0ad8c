// SPDX-License-Identifier: GPL-2.0 OR MIT
//! exmap for Rust, by libexmap. Safe code cannot touch a page that is not mapped.
//!
//! An [`Exmap`] is a surface and its pool. Each thread attaches an [`Interface`], which carries its
//! calls. A [`Part`] owns a range of the surface: it knows which of its pages are mapped, and gives
//! references to those only. FREE needs the part exclusively, so no reference outlives the page.
//! [`Exmap::surface`] is the first part; [`Part::split_off`] makes parts for other threads.
//!
//! exmap_user(3) is the reference of the calls and their errors.

mod library;

use library::*;
use std::collections::HashSet;
use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::raw::{c_int, c_uint, c_void};
use std::os::unix::io::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// The size of a page in bytes.
pub const PAGE_SIZE: usize = 4096;

/// The memory of a page.
pub type Page = [u8; PAGE_SIZE];

/// Why an exmap could not be opened or an interface not be attached.
#[derive(Debug, Clone, Copy)]
pub struct OpenError(c_int);

impl OpenError {
    /// The errno.
    pub fn errno(self) -> i32 {
        -self.0
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the library returns a string that is never freed or changed by this crate.
        let text = unsafe { CStr::from_ptr(exmap_strerror(self.0)) };
        write!(f, "{}", text.to_string_lossy())
    }
}

impl std::error::Error for OpenError {}

fn opened(result: c_int) -> Result<(), OpenError> {
    if result < 0 {
        Err(OpenError(result))
    } else {
        Ok(())
    }
}

/// Memory for a struct of the library, zeroed. Its address never changes.
struct Struct(*mut c_void);

impl Struct {
    fn new(size: u64) -> Struct {
        let words = vec![0u64; (size as usize + 7) / 8].into_boxed_slice();
        Struct(Box::into_raw(words) as *mut u64 as *mut c_void)
    }

    fn free(&self, size: u64) {
        let words = std::ptr::slice_from_raw_parts_mut(self.0 as *mut u64, (size as usize + 7) / 8);
        // SAFETY: new() made it with the same size, and the owner frees it once, in its drop().
        drop(unsafe { Box::from_raw(words) });
    }
}

/// A surface and its pool.
pub struct Exmap {
    exmap: Struct,
    surface_pages: u64,
    lent: AtomicBool,
}

// SAFETY: all threads of the process may use a struct exmap: see exmap_user.h.
unsafe impl Send for Exmap {}
unsafe impl Sync for Exmap {}

impl Exmap {
    /// Open an exmap. At most `pool_pages` pages are mapped at a time. READ and WRITE need a
    /// `backing` file, which may be closed afterwards.
    pub fn open(
        surface_pages: u64,
        pool_pages: u64,
        interfaces: u32,
        backing: Option<&File>,
    ) -> Result<Exmap, OpenError> {
        // SAFETY: a constant of the library.
        let exmap = Struct::new(unsafe { EXMAP_SIZE });
        let backing = backing.map_or(-1, |file| file.as_raw_fd());
        // SAFETY: the memory has the size of a struct exmap. There are no flags, so only calls on
        // an Interface map pages.
        let result =
            unsafe { exmap_open(exmap.0, surface_pages, pool_pages, interfaces, backing, 0) };
        if let Err(error) = opened(result) {
            // SAFETY: a constant of the library.
            exmap.free(unsafe { EXMAP_SIZE });
            return Err(error);
        }
        Ok(Exmap {
            exmap,
            surface_pages,
            lent: AtomicBool::new(false),
        })
    }

    /// An interface for one thread.
    pub fn attach(&self) -> Result<Interface<'_>, OpenError> {
        // SAFETY: a constant of the library.
        let interface = Struct::new(unsafe { EXMAP_INTERFACE_SIZE });
        // SAFETY: the memory has the size of a struct exmap_interface, and the exmap outlives it.
        let result = unsafe { exmap_attach(self.exmap.0, interface.0) };
        if let Err(error) = opened(result) {
            // SAFETY: a constant of the library.
            interface.free(unsafe { EXMAP_INTERFACE_SIZE });
            return Err(error);
        }
        Ok(Interface {
            interface,
            exmap: self,
        })
    }

    /// The whole surface; None the second time.
    pub fn surface(&self) -> Option<Part<'_>> {
        if self.lent.swap(true, Ordering::Relaxed) {
            return None;
        }
        Some(Part {
            exmap: self,
            range: 0..self.surface_pages,
            mapped: HashSet::new(),
            memory: PhantomData,
        })
    }

    /// `fsync` of the backing file.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the exmap is open.
        match unsafe { exmap_sync(self.exmap.0) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}

impl Drop for Exmap {
    fn drop(&mut self) {
        // SAFETY: no Part and no Interface outlives the exmap, so nobody uses the surface.
        unsafe {
            exmap_close(self.exmap.0);
            self.exmap.free(EXMAP_SIZE);
        }
    }
}

/// Carries the calls of one thread.
pub struct Interface<'e> {
    interface: Struct,
    exmap: &'e Exmap,
}

// SAFETY: it may move between threads. Only one at a time has the &mut that calls need.
unsafe impl Send for Interface<'_> {}

impl Drop for Interface<'_> {
    fn drop(&mut self) {
        // SAFETY: it is attached.
        unsafe {
            exmap_detach(self.interface.0);
            self.interface.free(EXMAP_INTERFACE_SIZE);
        }
    }
}

/// A range of the surface, and which of its pages are mapped. Pages are counted from the start of
/// the surface. A part that is dropped leaves its pages mapped until the exmap is closed.
pub struct Part<'e> {
    exmap: &'e Exmap,
    range: Range<u64>,
    mapped: HashSet<u64>,
    memory: PhantomData<&'e mut [Page]>,
}

/// What a call has done, and the first error, if pages failed.
#[derive(Debug)]
pub struct Done {
    /// How many pages were mapped, unmapped, read or written.
    pub pages: u64,
    /// Why others were not.
    pub error: Option<io::Error>,
}

impl Done {
    /// How many pages were done; or the error, if one failed.
    pub fn all(self) -> io::Result<u64> {
        self.error.map_or(Ok(self.pages), Err)
    }
}

impl<'e> Part<'e> {
    /// The pages of the part.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Divide the part: this keeps the pages below `page`. Panics if `page` is outside.
    pub fn split_off(&mut self, page: u64) -> Part<'e> {
        assert!(self.range.start <= page && page <= self.range.end);
        let (above, below) = self.mapped.drain().partition(|&one| one >= page);
        self.mapped = below;
        let range = page..self.range.end;
        self.range.end = page;
        Part {
            exmap: self.exmap,
            range,
            mapped: above,
            memory: PhantomData,
        }
    }

    /// Carry out a call on pages of this part. Returns the numbers of those that were done.
    fn call(
        &self,
        interface: &mut Interface<'_>,
        opcode: u64,
        pages: &Range<u64>,
    ) -> (Vec<u64>, Done) {
        assert!(
            std::ptr::eq(interface.exmap, self.exmap),
            "an interface of another exmap"
        );
        assert!(
            self.range.start <= pages.start && pages.end <= self.range.end,
            "not in this part"
        );
        let count = pages.end.saturating_sub(pages.start);
        let mut bits = vec![0u64; ((count + 63) / 64) as usize];
        // SAFETY: the interface is attached, and &mut makes this thread its only user. There is a
        // bit for each page.
        let result = unsafe {
            exmap_run_done(
                interface.interface.0,
                opcode as c_uint,
                pages.start,
                count,
                bits.as_mut_ptr(),
            )
        };
        let done: Vec<u64> = (0..count)
            .filter(|i| bits[(i / 64) as usize] >> (i % 64) & 1 == 1)
            .map(|i| pages.start + i)
            .collect();
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result as i32));
        let pages = done.len() as u64;
        (done, Done { pages, error })
    }

    fn map(&mut self, interface: &mut Interface<'_>, opcode: u64, pages: Range<u64>) -> Done {
        let (new, done) = self.call(interface, opcode, &pages);
        self.mapped.extend(new);
        done
    }

    /// Map a page at each address that has none.
    pub fn alloc(&mut self, interface: &mut Interface<'_>, pages: Range<u64>) -> Done {
        // SAFETY: a constant of the library.
        self.map(interface, unsafe { EXMAP_OP_ALLOC }, pages)
    }

    /// Map pages that are filled from the backing file.
    pub fn read(&mut self, interface: &mut Interface<'_>, pages: Range<u64>) -> Done {
        // SAFETY: a constant of the library.
        self.map(interface, unsafe { EXMAP_OP_READ }, pages)
    }

    /// Write mapped pages to the backing file.
    pub fn write(&self, interface: &mut Interface<'_>, pages: Range<u64>) -> Done {
        // SAFETY: a constant of the library.
        self.call(interface, unsafe { EXMAP_OP_WRITE }, &pages).1
    }

    /// Unmap pages.
    pub fn free(&mut self, interface: &mut Interface<'_>, pages: Range<u64>) -> Done {
        // SAFETY: a constant of the library.
        let (gone, done) = self.call(interface, unsafe { EXMAP_OP_FREE }, &pages);
        for page in gone {
            self.mapped.remove(&page);
        }
        done
    }

    fn address(&self, page: u64) -> Option<*mut Page> {
        // SAFETY: the exmap is open.
        let address = || unsafe { exmap_address(self.exmap.exmap.0, page) as *mut Page };
        self.mapped.contains(&page).then(address)
    }

    /// A page; None if it is not mapped.
    pub fn page(&self, page: u64) -> Option<&Page> {
        // SAFETY: the page is mapped. Only free() unmaps it, and write through page_mut() changes
        // it: both need &mut self. No other part has the page.
        self.address(page).map(|address| unsafe { &*address })
    }

    /// A page that can be changed; None if it is not mapped.
    pub fn page_mut(&mut self, page: u64) -> Option<&mut Page> {
        // SAFETY: as in page().
        self.address(page).map(|address| unsafe { &mut *address })
    }
}
