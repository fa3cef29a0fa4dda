//! A file that is whole, or as it was before.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where a file is written before it takes its place, beside it.
pub fn partial(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    PathBuf::from(partial)
}

/// Puts what was written into the file's place, on disk.
pub fn replace(written: &File, partial: &Path, path: &Path) -> io::Result<()> {
    written.sync_all()?;
    fs::rename(partial, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
