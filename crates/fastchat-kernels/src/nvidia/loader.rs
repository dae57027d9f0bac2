//! Finds NVIDIA's libraries at run time and points the trampolines of `build/trampolines.rs` at them. All or nothing:
//! until every library is there, each of their functions returns an error and none crashes.

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::sync::Mutex;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// A line of the table that the build made of `cuda/symbols.txt`.
#[repr(C)]
struct Function {
    name: *const c_char,
    slot: *mut *const c_void,
    library: usize,
}

unsafe extern "C" {
    static fastchat_nvidia_functions: Function;
    static fastchat_nvidia_functions_end: Function;
}

/// A library by the number that the table uses.
pub(super) struct Wanted {
    pub file: &'static str,
    pub what: &'static str,
    pub remedy: &'static str,
}

const EXTRA: &str = "`pip install 'fastchat-rs[cuda]'` brings it";

/// As `LIBRARIES` in `build/trampolines.rs`; cublas finds cublasLt because that is loaded before it.
const WANTED: [Wanted; 5] = [
    Wanted { file: "libcuda.so.1", what: "the NVIDIA driver", remedy: "install the driver, 580 or newer" },
    Wanted { file: "libcublasLt.so.13", what: "cuBLAS 13", remedy: EXTRA },
    Wanted { file: "libcublas.so.13", what: "cuBLAS 13", remedy: EXTRA },
    Wanted { file: "libcurand.so.10", what: "cuRAND 10", remedy: EXTRA },
    Wanted { file: "libnvrtc.so.13", what: "NVRTC 13", remedy: EXTRA },
];

/// Whether the table is filled. It belongs to the process, as the libraries do.
static LOADED: Mutex<bool> = Mutex::new(false);

/// Loads what the table names, from `folders` or else where the system looks. Once done, it stays done; a failure may
/// be tried again with other folders.
///
/// # Errors
/// In one line, the first library that is missing, where it was looked for, and what brings it.
pub fn load(folders: &[PathBuf]) -> Result<(), String> {
    let mut loaded = LOADED.lock().map_err(|_| "an earlier attempt to load NVIDIA's libraries panicked")?;
    if *loaded {
        return Ok(());
    }
    let functions = functions();
    let mut found: Vec<(*mut *const c_void, *const c_void)> = Vec::with_capacity(functions.len());
    for (number, wanted) in WANTED.iter().enumerate() {
        let mut names = functions.iter().filter(|function| function.library == number).peekable();
        if names.peek().is_none() {
            continue;
        }
        let library = open(wanted, folders)?;
        for function in names {
            // SAFETY: the table holds NUL-terminated names in read-only memory.
            let name = unsafe { CStr::from_ptr(function.name) };
            // SAFETY: only the address is taken; the trampolines are called with the signatures of cudarc's bindings.
            let address = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) };
            let address = address.map_err(|_| {
                let name = name.to_string_lossy();
                format!("{} has no function {name}: it is too old; {}", wanted.file, wanted.remedy)
            })?;
            found.push((function.slot, address.into_raw().cast_const()));
        }
        // Never unloaded: the table points into it.
        std::mem::forget(library);
    }
    for (slot, address) in found {
        // SAFETY: `slot` is a word of the table's own data section; a trampoline that runs meanwhile reads either the
        // old or the new address, for aligned words are written whole.
        unsafe { slot.write_volatile(address) };
    }
    *loaded = true;
    Ok(())
}

fn functions() -> &'static [Function] {
    let (start, end) = (&raw const fastchat_nvidia_functions, &raw const fastchat_nvidia_functions_end);
    let bytes = end as usize - start as usize;
    // SAFETY: the build lays out an array of `Function` from the first label to the second, never written.
    unsafe { std::slice::from_raw_parts(start, bytes / size_of::<Function>()) }
}

/// Opens a library from `folders` or else from where the system looks.
///
/// # Errors
/// In one line, where it was looked for and what brings it.
pub(super) fn open(wanted: &Wanted, folders: &[PathBuf]) -> Result<Library, String> {
    let places = folders.iter().map(|folder| folder.join(wanted.file)).filter(|path| path.is_file());
    let mut problem = None;
    for place in places.chain([PathBuf::from(wanted.file)]) {
        // SAFETY: constructors of NVIDIA's libraries run here; they have no requirements on the process.
        match unsafe { Library::open(Some(&place), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok(library),
            // A file that is there and does not load says more than one that is not.
            Err(error) if place.is_file() => {
                problem = Some(error.source().map_or_else(|| error.to_string(), ToString::to_string));
            }
            Err(_) => {}
        }
    }
    let mut looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    looked.push("the system's library path".to_owned());
    let problem = problem.map(|problem| format!(" ({problem})")).unwrap_or_default();
    let message =
        format!("{} ({}) was not found in {}{problem}; {}", wanted.file, wanted.what, looked.join(", "), wanted.remedy);
    Err(message.replace('\n', " "))
}
