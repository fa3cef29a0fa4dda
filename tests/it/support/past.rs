//! The past of a Redis: copies of its files, older ones in their place, a torn end.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::redis::OwnRedis;
use super::until;

impl OwnRedis {
    /// The killed server again, with what its files hold, once it has loaded them.
    pub async fn back(&mut self) {
        self.start_again(&[]);
        until("redis has loaded its files", || self.try_tell::<redis::Value>(&["DBSIZE"])).await;
    }

    fn aof(&self) -> PathBuf {
        self.folder().join("appendonlydir")
    }

    /// Its data at this moment, as an RDB file.
    pub async fn snapshot(&self) -> Vec<u8> {
        let _: String = self.tell(&["SAVE"]).await;
        std::fs::read(self.folder().join("dump.rdb")).expect("it has saved")
    }

    /// Gives the killed server a snapshot to start from; one without an AOF reads it.
    pub fn restore(&self, snapshot: &[u8]) {
        std::fs::write(self.folder().join("dump.rdb"), snapshot).expect("it can be written");
    }

    /// Its AOF as it is at this moment, written while it runs.
    pub fn copy_aof(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().expect("a folder");
        copy_files(&self.aof(), copy.path());
        copy
    }

    /// Gives the killed server an older past.
    pub fn replace_aof(&self, copy: &Path) {
        std::fs::remove_dir_all(self.aof()).expect("it has an AOF");
        std::fs::create_dir(self.aof()).expect("a folder");
        copy_files(copy, &self.aof());
    }

    /// Kills it, and starts it with an older past. A copy of a file that is being written may end inside a transaction, so the
    /// AOF is written anew: see docs/reliability.md, the last section.
    pub async fn fall_back_to(&mut self, copy: &Path) {
        self.kill();
        self.replace_aof(copy);
        self.back().await;
        self.rewrite_aof().await;
    }

    /// Writes the AOF anew. Redis 7.0 cuts a torn one off inside the transaction that was torn, and would run that half
    /// at its next start.
    pub async fn rewrite_aof(&self) {
        let _: String = self.tell(&["BGREWRITEAOF"]).await;
        until("the AOF is rewritten", || async {
            let info: String = self.tell(&["INFO", "persistence"]).await;
            ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_last_bgrewrite_status:ok"]
                .iter()
                .all(|line| info.contains(line))
                .then_some(())
        })
        .await;
    }

    pub fn aof_length(&self) -> u64 {
        self.aof_tail().metadata().expect("a length").len()
    }

    /// Cuts the killed server's AOF off at a length.
    pub fn tear_aof(&self, length: u64) {
        self.aof_tail().set_len(length).expect("it can be cut");
    }

    /// Cuts the killed server's AOF off so many bytes from the EXEC of its last transaction that has the words.
    pub fn tear_last_transaction(&self, words: &[u8], from_end: i64) {
        let mut bytes = Vec::new();
        self.aof_tail().read_to_end(&mut bytes).expect("it can be read");
        let last = |from: &[u8], what: &[u8]| from.windows(what.len()).rposition(|window| window == what);
        let inside = last(&bytes, words).expect("a transaction has the words");
        let exec = b"*1\r\n$4\r\nEXEC\r\n";
        let end = bytes[inside..].windows(exec.len()).position(|window| window == exec).expect("its end");
        self.tear_aof(((inside + end) as u64).checked_add_signed(from_end).expect("a length"));
    }

    fn aof_tail(&self) -> std::fs::File {
        let files = std::fs::read_dir(self.aof()).expect("it has an AOF");
        let paths = files.map(|file| file.expect("a file").path());
        let path = paths.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().expect("a tail");
        std::fs::OpenOptions::new().read(true).write(true).open(path).expect("it can be written")
    }
}

fn copy_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).expect("a folder") {
        let path = file.expect("a file").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("it can be copied");
    }
}
