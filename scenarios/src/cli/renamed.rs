//! Commands and flags of the release before. They work for one more release and warn on standard error.

use std::ffi::OsString;

/// A command of the release before, and the words that take its place.
const COMMANDS: &[(&str, &[&str])] = &[
    ("bless", &["audio", "check"]),
    ("keep", &["regress", "add"]),
    ("oracles", &["list", "--oracles"]),
    ("quality", &["audio", "check"]),
    ("sabotage", &["faults"]),
    ("zoo", &["bugs"]),
];

/// A flag of the release before, and the one that takes its place.
const FLAGS: &[(&str, &str)] = &[
    ("--except", "--skip-rule"),
    ("--into", "--dir"),
    ("--longest", "--max-call-seconds"),
    ("--plays", "--budget"),
    ("--sabotage", "--fault"),
    ("--stage", "--backend"),
    ("--tolerate", "--allow-failures"),
];

/// An oracle's name in the release before, and its name today.
const ORACLES: &[(&str, &str)] = &[
    ("audible", "no_dead_air"),
    ("auth", "stream_auth"),
    ("bound", "memory_bounded"),
    ("bye", "farewell_heard"),
    ("bytes_in", "uplink_intact"),
    ("bytes_out", "downlink_intact"),
    ("clear", "clear_on_barge_in"),
    ("expect", "scenario_expectations"),
    ("fence", "no_stale_audio"),
    ("format", "format_confirmed"),
    ("goon", "survives_model_error"),
    ("greet", "greeting_guard"),
    ("heard", "truncation_position"),
    ("keys", "dtmf_delivered"),
    ("latency", "response_latency"),
    ("legal", "protocol_valid"),
    ("mark", "marks_unique"),
    ("one", "single_response"),
    ("owner", "one_stream_per_call"),
    ("pace", "pacing"),
    ("renew", "session_renewal"),
    ("robust", "survives_bad_input"),
    ("start", "opening_order"),
    ("tear", "teardown"),
    ("text", "transcript"),
    ("tool", "tool_calls_answered"),
];

/// Flags whose value is the name of an oracle.
const OF_ORACLES: [&str; 2] = ["--oracle", "--skip-rule"];

/// A command line in the words of today, and a warning for each old word in it.
pub(super) fn modern(words: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let mut warnings = Vec::new();
    let mut modern: Vec<OsString> = Vec::with_capacity(words.len() + 1);
    for (at, word) in words.into_iter().enumerate() {
        let text = word.to_str().unwrap_or_default();
        let command = COMMANDS.iter().find(|(old, _)| at == 1 && *old == text);
        let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
        let flag = FLAGS.iter().find(|(old, _)| *old == flag);
        if let Some((old, new)) = command {
            warnings.push(format!("`scn {old}` is now `scn {}`", new.join(" ")));
            modern.extend(new.iter().map(OsString::from));
        } else if let Some((old, new)) = flag {
            warnings.push(format!("`{old}` is now `{new}`"));
            modern.push(value.map_or_else(|| (*new).into(), |value| format!("{new}={value}").into()));
        } else {
            modern.push(word);
        }
        oracle(&mut modern, &mut warnings);
    }
    accept(&mut modern, &mut warnings);
    (modern, warnings)
}

/// The last word may be the old name of an oracle.
fn oracle(words: &mut [OsString], warnings: &mut Vec<String>) {
    let [.., before, last] = words else { return };
    let text = last.to_str().unwrap_or_default();
    let (flag, name) = text.split_once('=').unwrap_or((before.to_str().unwrap_or_default(), text));
    let Some((old, new)) = ORACLES.iter().find(|(old, _)| OF_ORACLES.contains(&flag) && *old == name) else {
        return;
    };
    warnings.push(format!("the oracle `{old}` is now `{new}`"));
    *last = if text == *old { (*new).into() } else { format!("{flag}={new}").into() };
}

/// `bless --accept` is a command of its own now.
fn accept(words: &mut Vec<OsString>, warnings: &mut Vec<String>) {
    let audio = words.get(1).is_some_and(|word| word == "audio");
    let Some(flag) = words.iter().position(|word| word == "--accept").filter(|_| audio) else { return };
    words.remove(flag);
    if let Some(verb) = words.get_mut(2) {
        *verb = "accept".into();
    }
    warnings.push("`--accept` is now `scn audio accept`".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> (String, usize) {
        let (words, warnings) = modern(line.split(' ').map(OsString::from).collect());
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        (words.join(" "), warnings.len())
    }

    #[test]
    fn old_commands_and_flags_become_those_of_today() {
        for (old, new, warnings) in [
            ("scn bless barge_in --accept", "scn audio accept barge_in", 2),
            ("scn bless", "scn audio check", 1),
            ("scn keep a.toml b --into c", "scn regress add a.toml b --dir c", 2),
            ("scn oracles --write", "scn list --oracles --write", 1),
            (
                "scn explore --seeds 1..2 --stage=pipes --tolerate 1",
                "scn explore --seeds 1..2 --backend=pipes --allow-failures 1",
                2,
            ),
            ("scn run --sabotage x", "scn run --fault x", 1),
            ("scn zoo no_clear", "scn bugs no_clear", 1),
            ("scn shrink 7 --oracle goon", "scn shrink 7 --oracle survives_model_error", 1),
            ("scn conform x --except=format", "scn conform x --skip-rule=format_confirmed", 2),
        ] {
            assert_eq!(rewritten(old), (new.to_owned(), warnings), "{old}");
        }
    }

    #[test]
    fn words_of_today_stay() {
        for line in ["scn run sabotage/barge_in --backend memory", "scn show zoo", "scn"] {
            assert_eq!(rewritten(line), (line.to_owned(), 0));
        }
    }

    #[test]
    fn each_old_name_of_an_oracle_leads_to_one_of_today() {
        let today: Vec<_> = crate::oracle::ALL.iter().map(|oracle| oracle.name).collect();
        let mut named: Vec<_> = ORACLES.iter().map(|(_, new)| *new).collect();
        named.sort_by_key(|name| today.iter().position(|known| known == name));
        assert_eq!(named, today);
    }

    #[test]
    fn whatever_takes_the_place_of_an_old_word_is_a_command() {
        for (old, new) in COMMANDS {
            let operands: &[&str] = if *old == "keep" { &["a.toml", "name"] } else { &[] };
            let words: Vec<_> = ["scn"].iter().chain(*new).chain(operands).copied().collect();
            super::super::check(&words).unwrap();
        }
    }
}
