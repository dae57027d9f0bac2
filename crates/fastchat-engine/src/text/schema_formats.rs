//! Regular expressions for the values of `format` that the grammar compiler knows too loosely or too narrowly: dates of
//! the calendar, leap seconds, all of RFC 5321's mailboxes and RFC 4291's addresses.

use std::fmt::Write;

const FRACTION: &str = r"(?:\.[0-9]+)?";
const HEX: &str = "[0-9a-fA-F]{1,4}";
const IPV4: &str =
    r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";

/// Patterns that a string of this format matches, all of them; `None` for formats the compiler knows well, or nobody.
pub(crate) fn patterns(format: &str) -> Option<Vec<String>> {
    let all = match format {
        "date" => vec![date()],
        "time" => times("").into(),
        "date-time" => times(&format!("{}[tT]", date())).into(),
        "ipv6" => vec![ipv6()],
        "email" => vec![email()],
        _ => return None,
    };
    Some(all.into_iter().map(|pattern| format!("^(?:{pattern})$")).collect())
}

fn date() -> String {
    let leap_year = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)";
    format!(
        "(?:[0-9]{{4}}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)\
         |02-(?:0[1-9]|1[0-9]|2[0-8]))|{leap_year}-02-29)"
    )
}

/// Times of RFC 3339 after `before`. A leap second is the last of a day in UTC, whatever the offset; two patterns say
/// so, one about hours and one about minutes.
fn times(before: &str) -> [String; 2] {
    let zone = "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    let usual = format!("(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]{FRACTION}{zone}");
    let mut hours = format!("{usual}|23:59:60{FRACTION}[zZ]");
    for hour in 0..24 {
        // Writing to a string does not fail.
        let _ = write!(hours, r"|{:02}:59:60{FRACTION}\+{hour:02}:00", (hour + 23) % 24);
        let _ = write!(hours, r"|{hour:02}:[0-5][0-9]:60{FRACTION}\+{hour:02}:(?:0[1-9]|[1-5][0-9])");
        let _ = write!(hours, r"|{:02}:[0-5][0-9]:60{FRACTION}-{hour:02}:[0-5][0-9]", 23 - hour);
    }
    let any_date = if before.is_empty() { "" } else { "[^tT]*[tT]" };
    let mut minutes = format!("{usual}|23:59:60{FRACTION}[zZ]");
    for minute in 0..60 {
        let _ = write!(minutes, r"|[0-9]{{2}}:{:02}:60{FRACTION}\+[0-9]{{2}}:{minute:02}", (minute + 59) % 60);
        let _ = write!(minutes, r"|[0-9]{{2}}:{:02}:60{FRACTION}-[0-9]{{2}}:{minute:02}", 59 - minute);
    }
    [format!("{before}(?:{hours})"), format!("{any_date}(?:{minutes})")]
}

fn ipv6() -> String {
    let last = format!("(?:{HEX}:{HEX}|{IPV4})");
    let mut all = format!("(?:{HEX}:){{6}}{last}");
    // `::` stands for what is missing between `before` groups at most and those after it.
    for (before, after) in (0..6).zip((0..6).rev()) {
        let head = if before == 0 { String::new() } else { format!("(?:(?:{HEX}:){{0,{}}}{HEX})?", before - 1) };
        let _ = write!(all, "|{head}::(?:{HEX}:){{{after}}}{last}");
    }
    let _ = write!(all, "|(?:(?:{HEX}:){{0,5}}{HEX})?::{HEX}|(?:(?:{HEX}:){{0,6}}{HEX})?::");
    format!("(?:{all})")
}

fn email() -> String {
    let atom = r"[a-zA-Z0-9!#$%&'*+\-/=?\^_`{|}~]+";
    let quoted = r#""(?:[\x20\x21\x23-\x5B\x5D-\x7E]|\\[\x20-\x7E])*""#;
    let label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
    let literal = format!(r"\[(?:{IPV4}|IPv6:{})\]", ipv6());
    format!(r"(?:{atom}(?:\.{atom})*|{quoted})@(?:{label}(?:\.{label})*|{literal})")
}
