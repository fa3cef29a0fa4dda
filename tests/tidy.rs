//! House rules that a compiler does not hold: who may name what, and how the repository looks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files under a folder with an ending, in order.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} holds no {ending}");
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code of a file: its unit tests and comments may say what they like.
fn code(path: &Path) -> String {
    let text = text(path);
    let code = text.split("#[cfg(test)]").next().unwrap_or("");
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn refuse(files: Vec<PathBuf>, words: &[&str], rule: &str) {
    for path in files {
        let code = code(&path);
        for (number, line) in code.lines().enumerate() {
            for word in words {
                assert!(!line.contains(word), "{rule}: {} names `{word}` (code line {})", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn the_ledger_and_the_pipeline_know_no_io_and_no_clock() {
    let words =
        ["rdkafka", "redis::", "axum", "tokio", "SystemTime", "Instant", "Utc::now", "std::fs", "std::env", "async "];
    refuse(files("src/ledger", ".rs"), &words, "ledger/ is pure");
    refuse(files("src/pipeline", ".rs"), &words, "pipeline/ is without IO");
}

#[test]
fn dependencies_point_one_way() {
    let above = |layers: &[&str]| layers.iter().map(|layer| format!("crate::{layer}")).collect::<Vec<_>>();
    let check = |folder: &str, layers: &[&str]| {
        let words = above(layers);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refuse(files(folder, ".rs"), &words, "dependencies point one way");
    };
    check(
        "src/ledger",
        &["pipeline", "store", "ingest", "outbox", "http", "app", "audit", "cli", "demo", "config", "metrics"],
    );
    check("src/pipeline", &["store", "ingest", "outbox", "http", "app", "audit", "cli", "demo", "config", "metrics"]);
    check("src/store", &["pipeline", "ingest", "outbox", "http", "app", "audit", "cli", "demo"]);
    check("src/ingest", &["store", "outbox", "http", "app", "audit", "cli", "demo"]);
    check("src/report", &["ingest", "pipeline", "outbox", "http", "app", "audit", "cli", "demo", "metrics"]);
    check("src/outbox", &["app", "audit", "cli", "demo"]);
    check("src/http", &["store", "report", "ingest", "pipeline", "outbox", "app", "audit", "cli", "demo"]);
    check("src/app", &["audit", "cli", "demo"]);
    check("src/audit", &["outbox", "http", "app", "cli", "demo", "metrics"]);
    check("src/backtest", &["store", "outbox", "http", "app", "audit", "cli", "demo", "config", "metrics"]);
}

#[test]
fn each_client_library_has_one_home() {
    let outside = |home: &str| {
        let all = files("src", ".rs").into_iter();
        all.filter(|path| !path.starts_with(home)).collect::<Vec<_>>()
    };
    refuse(outside("src/ingest"), &["rdkafka::"], "only ingest/ names rdkafka");
    refuse(outside("src/store"), &["redis::cmd", "redis::Client", "redis::aio"], "only store/ names redis");
    refuse(outside("src/http"), &["axum::", "hyper::", "hyper_util::"], "only http/ names axum and hyper");
    let mut others = outside("src/config.rs");
    others.retain(|path| !path.starts_with("src/config"));
    refuse(others, &["std::env::var"], "only config reads the environment");
}

/// `println!` and `eprintln!` panic where the disk behind them is full.
#[test]
fn what_is_printed_can_fail() {
    refuse(files("src", ".rs"), &["println!(", "print!("], "cli/output.rs writes to stdout, note! to stderr");
}

#[test]
fn only_keys_rs_spells_a_key() {
    let others = files("src", ".rs").into_iter().filter(|path| !path.ends_with("store/keys.rs"));
    refuse(
        others.collect(),
        &["}}:shard", "}}:outbox", ":root\"", "}}:a:", "}}:d:", "}}:v:", "}}:u:", "}}:j:", "}}:o:", "}}:c:", "}}:m:"],
        "keys are spelled once",
    );
}

#[test]
fn scripts_take_keys_from_keys_and_never_read_a_clock() {
    for path in files("src/store/lua", ".lua") {
        let name = path.display();
        for (index, line) in text(&path).lines().enumerate() {
            let code = line.split("--").next().unwrap_or("");
            assert!(!code.contains("'TIME'"), "{name}:{}: a script reads no clock", index + 1);
            assert!(!code.contains("cjson") && !code.contains("math.random"), "{name}:{}: not in a script", index + 1);
            // The key stands behind the command: `redis.call('HSET', KEYS[1], …`.
            let Some((_, call)) = code.split_once("redis.call('") else { continue };
            let key = call.split_once(", ").map_or("", |(_, rest)| rest.split([',', ')']).next().unwrap_or(""));
            assert!(!key.contains(".."), "{name}:{}: a key is built from data", index + 1);
        }
    }
}

/// The upper-case word behind each of these beginnings, in lower case.
fn words_behind(beginnings: &[&str], code: &str) -> Vec<String> {
    let word = |rest: &str| rest.split(|letter: char| !letter.is_ascii_uppercase()).next().map(str::to_lowercase);
    beginnings.iter().flat_map(|beginning| code.split(beginning).skip(1).filter_map(word)).collect()
}

#[test]
fn the_rights_at_redis_are_those_of_the_commands_that_are_used() {
    let scripts = files("src/store/lua", ".lua").into_iter().map(|path| text(&path));
    let used = scripts.flat_map(|script| words_behind(&["redis.call('", "redis.pcall('"], &script));
    let store = files("src/store", ".rs").into_iter().map(|path| code(&path));
    let asked = store.flat_map(|code| words_behind(&["cmd(\""], &code));
    // Scripts are called by their hash; a Sentinel has users of its own.
    let used = used.chain(asked).filter(|word| word != "sentinel").chain(["evalsha".to_owned()]);
    let used: std::collections::BTreeSet<String> = used.collect();
    let page = text(Path::new("docs/permissions.md"));
    let given = page.split([' ', '`', '\n']).filter_map(|word| word.strip_prefix('+')?.split('|').next());
    assert_eq!(used, given.map(str::to_owned).collect(), "docs/permissions.md (right) names other commands");
}

/// What their tables name goes with the code that it names: neither runs with the other tests.
#[test]
fn the_fault_tests_that_are_listed_exist_and_so_do_the_places_of_planted_bugs() {
    let tests: Vec<String> = files("tests/it", ".rs").iter().map(|path| text(path)).collect();
    let faults = text(Path::new("tests/faults"));
    let listed: Vec<&str> = faults.lines().filter_map(|line| line.strip_prefix("    (\"")?.split('"').next()).collect();
    assert!(listed.len() > 50, "tests/faults names {} tests", listed.len());
    for name in listed {
        let function = format!("async fn {}()", name.rsplit("::").next().expect("a name"));
        assert!(tests.iter().any(|text| text.contains(&function)), "tests/faults: there is no `{function}`");
    }
    let checked = Command::new("tests/plant-bugs").arg("--check").output().expect("python3 runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn scripts_write_last() {
    let scripts: [(&str, &[&str]); 5] = [
        ("apply", &["apply", "apply_late", "apply_decide"]),
        ("command", &["command"]),
        ("roll", &["roll"]),
        ("fold_usage", &["fold_usage"]),
        ("forget_usage", &["forget_usage"]),
    ];
    for (name, parts) in scripts {
        let part = |name: &&str| text(Path::new(&format!("src/store/lua/{name}.lua")));
        let text: String = parts.iter().map(part).collect();
        let (before, after) = text.split_once("\n-- Write. Nothing below can fail").expect("the write phase is marked");
        let commands = ["'SADD'", "'ZADD'", "'XADD'", "'HDEL'", "'DEL'", "'UNLINK'", "'XDEL'", "'SET'", "'APPEND'"];
        let helpers = ["write_account(", "write_marks(", "limits.write(", "usage.write(", "publish("];
        for word in commands.into_iter().chain(helpers) {
            assert!(!before.contains(word), "{name}.lua writes with {word} before its write phase");
        }
        // Notes and the layout of a day that is full are the writes of refused calls; each stands right before its return.
        let writes = before.matches("'HSET'").count();
        assert_eq!(writes, if name == "apply" { 2 } else { 0 }, "{name}.lua writes before its write phase");
        let last = after.lines().filter(|line| line.starts_with("  return") || line.contains("error(")).count();
        assert_eq!(last, 0, "{name}.lua can leave its write phase half-way");
    }
}

#[test]
fn files_stay_small_and_lines_short() {
    for path in files("src", ".rs").into_iter().chain(files("src", ".lua")) {
        let text = text(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        let is_code = |line: &&str| {
            !line.trim().is_empty() && !line.trim_start().starts_with("//") && !line.trim_start().starts_with("--")
        };
        let lines = code.lines().filter(is_code).count();
        assert!(lines <= 600, "{} has {lines} lines: is there a second idea inside?", path.display());
        for (index, line) in code.lines().enumerate() {
            assert!(line.chars().count() <= 140, "{}:{} is long", path.display(), index + 1);
        }
    }
}

#[test]
fn architecture_stays_a_bird_s_eye_view() {
    let lines = text(Path::new("ARCHITECTURE.md")).lines().count();
    assert!(lines <= 220, "ARCHITECTURE.md has {lines} lines, at most 220");
}
