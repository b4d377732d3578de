//! The body of a response that vcl_synth makes.

use std::ffi::c_int;
use std::slice;

use varnish::ffi;
use varnish::vcl::{Ctx, VclError};

/// The widest field that is asked of a printf at once.
const WIDEST: usize = 1 << 30;

/// A synthetic body.
pub struct Synthetic<'c> {
    vsb: &'c mut ffi::vsb,
}

impl<'c> Synthetic<'c> {
    /// That of vcl_synth, for this function.
    pub fn of(function: &str, ctx: &Ctx<'c>) -> Result<Self, VclError> {
        if ctx.raw.method != ffi::VCL_MET_SYNTH {
            return Err(format!("kvm.{function}() is for vcl_synth").into());
        }
        // SAFETY: in vcl_synth that is the body's buffer, which nobody else uses while VCL has called us.
        let vsb = unsafe { ctx.raw.specific.cast::<ffi::vsb>().as_mut() };
        let vsb = vsb.filter(|vsb| vsb.magic == ffi::VSB_MAGIC);
        Ok(Self {
            vsb: vsb.ok_or("vcl_synth has no body")?,
        })
    }

    /// Makes it so long, and has `read` fill it from the start: it puts bytes into its buffer and says how many, 0 if there are no
    /// more. An error leaves the body empty.
    pub fn fill(
        &mut self,
        len: usize,
        read: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<(), VclError> {
        self.clear();
        let filled = self.grow(len).and_then(|()| self.read(len, read));
        if filled.is_err() {
            self.clear();
        }
        filled
    }

    /// Makes it empty. varnishd asserts that nothing has gone wrong with it, which is forgotten by this too.
    pub fn clear(&mut self) {
        // SAFETY: it is a vsb.
        unsafe { ffi::VSB_clear(self.vsb) };
    }

    /// Fills it with so many spaces. Appended piece by piece, a long body would be copied again and again: it grows by 4 KiB.
    fn grow(&mut self, len: usize) -> Result<(), VclError> {
        let mut left = len;
        while left > 0 {
            let width = left.min(WIDEST);
            // SAFETY: it is a vsb, and the format takes an int and a C string.
            unsafe { ffi::VSB_printf(self.vsb, c"%*s".as_ptr(), width as c_int, c"".as_ptr()) };
            left -= width;
        }
        let is_whole = self.vsb.s_error == 0
            && usize::try_from(self.vsb.s_len) == Ok(len)
            && self.vsb.s_size > self.vsb.s_len;
        match is_whole {
            true => Ok(()),
            false => Err(format!("no memory for a body of {len} bytes").into()),
        }
    }

    fn read(
        &mut self,
        len: usize,
        mut read: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<(), VclError> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: grow() has found that the buffer has so many bytes, all written.
        let buf = unsafe { slice::from_raw_parts_mut(self.vsb.s_buf.cast::<u8>(), len) };
        let mut at = 0;
        while at < len {
            match read(&mut buf[at..]) {
                0 => return Err(format!("the body ended {} bytes too early", len - at).into()),
                more => at += more,
            }
        }
        Ok(())
    }
}
