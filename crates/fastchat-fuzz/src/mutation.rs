//! Inputs for a toolchain without coverage: those of a corpus, changed in one to four places. Knows targets as functions;
//! keeps what one of them fails at where every later run replays it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time that one input may take on a loaded machine.
const SLOWEST: Duration = Duration::from_secs(20);
/// Largest input made.
const MAX_BYTES: usize = 64 << 10;
const ABSURD: [&[u8]; 12] = [
    b"0",
    b"-1",
    b"1e308",
    b"4294967296",
    b"18446744073709551615",
    b"4294967295",
    b"0.5",
    b"null",
    b"\"\"",
    b"[]",
    b"{}",
    b"\\u0000",
];
const WORDS: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX];

/// SplitMix64 (Steele et al., OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Where the inputs of `target` lie that every run replays: `corpus` and `crashes`.
pub fn home(target: &str) -> PathBuf {
    // bolero looks for them there.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/tests/__fuzz__").join(target)
}

/// Files of one of them, in the order of their names; none where there is no such folder.
fn kept(target: &str, folder: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(home(target).join(folder)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a file of the corpus")).collect()
}

/// Feeds `check` what is kept, then changed inputs for `time`; the number of those. The same `seed` gives the same inputs.
///
/// # Panics
/// As `check` does, after the input has been kept; and where an input takes too long.
pub fn run(target: &str, check: impl Fn(&[u8]), time: Duration, seed: u64) -> u64 {
    let corpus = kept(target, "corpus");
    assert!(!corpus.is_empty(), "{target} has no corpus");
    kept(target, "crashes").iter().chain(&corpus).for_each(|input| check(input));
    let (began, mut random, mut count) = (Instant::now(), Random(seed), 0);
    while began.elapsed() < time {
        let input = changed(&corpus, &mut random);
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&input)));
        let slow = start.elapsed() > SLOWEST;
        if outcome.is_err() || slow {
            let name = home(target).join("crashes").join(format!("{seed:x}-{count}"));
            std::fs::create_dir_all(home(target).join("crashes")).expect("a folder for findings");
            std::fs::write(&name, &input).expect("room for a finding");
            outcome.unwrap_or_else(|panic| resume_unwind(panic));
            panic!("{target}: {:?} for {}", start.elapsed(), name.display());
        }
        count += 1;
    }
    count
}

fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut out = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        change(&mut out, corpus, random);
        out.truncate(MAX_BYTES);
    }
    out
}

fn change(out: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    if out.is_empty() {
        out.push(random.next() as u8);
        return;
    }
    // Headers are where decisions lie: half of the places are among the first bytes.
    let most = if random.below(2) == 0 { out.len().min(256) } else { out.len() };
    let at = random.below(most);
    let end = (at + 1 + random.below(24)).min(out.len());
    match random.below(9) {
        0 => out[at] ^= 1 << random.below(8),
        1 => out[at] = random.next() as u8,
        2 => out.truncate(at),
        3 => drop(out.drain(at..end)),
        4 => {
            let part = out[at..end].to_vec();
            out.splice(at..at, part);
        }
        5 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len());
            let to = (from + 1 + random.below(48)).min(other.len());
            out.splice(at..end, other[from..to].iter().copied());
        }
        6 => {
            let Some(start) = (at..out.len()).find(|&i| out[i].is_ascii_digit()) else { return };
            let end = (start..out.len()).find(|&i| !out[i].is_ascii_digit()).unwrap_or(out.len());
            out.splice(start..end, ABSURD[random.below(ABSURD.len())].iter().copied());
        }
        7 => {
            let word = WORDS[random.below(WORDS.len())].to_le_bytes();
            let size = [1, 4, 8][random.below(3)].min(out.len() - at);
            out[at..at + size].copy_from_slice(&word[..size]);
        }
        // A piece ends here, for the targets that stream.
        _ => out.insert(at, 1),
    }
}
