//! A worker's own clock of day, which a test sets while it runs. What durations are measured by goes on, as when the clock
//! of a machine is set.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/clock.c");

pub struct Clock {
    folder: TempDir,
}

impl Clock {
    /// One that is right.
    pub fn new() -> Clock {
        let clock = Clock { folder: tempfile::tempdir().expect("a folder") };
        let options = ["-shared", "-fPIC", "-O2", "-Wall", "-o"];
        let built = Command::new("cc").args(options).arg(clock.library()).arg(SOURCE).status();
        assert!(built.expect("a C compiler").success(), "{SOURCE} is built");
        clock.is_off_by(0);
        clock
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    fn off(&self) -> PathBuf {
        self.folder.path().join("off")
    }

    /// Sets it, by seconds from the right time: for all threads at once.
    pub fn is_off_by(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().create(true).write(true).truncate(false).open(self.off()).expect("a file");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("it is written");
    }

    /// What a program needs to go by it.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.to_str().expect("a path is UTF-8").to_owned();
        [("LD_PRELOAD", text(&self.library())), ("CLOCK_OFF_BY", text(&self.off()))]
    }
}
