//! Git's configuration of who uses a mirror. Recipes keep naming the upstream: what leads to the mirror is
//! `url.*.insteadOf`, and only fetches are led there.

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `section.sub.key`.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Setting {
    /// Makes one.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

/// Leads fetches of the URLs that begin with `upstream` to `mirror`, and leaves pushes where they were: `insteadOf`
/// alone would send them to the mirror too, which refuses them.
pub fn redirect(upstream: &str, mirror: &str) -> Vec<Setting> {
    vec![
        Setting::new(format!("url.{mirror}.insteadOf"), upstream),
        Setting::new(format!("url.{upstream}.pushInsteadOf"), upstream),
    ]
}

/// How to speak with a mirror: the second version of the protocol asks for the refs that are wanted only, and a
/// connection that has stalled for half a minute is given up.
pub fn transport() -> Vec<Setting> {
    [("protocol.version", "2"), ("http.lowSpeedLimit", "1000"), ("http.lowSpeedTime", "30")]
        .map(|(key, value)| Setting::new(key, value))
        .into()
}

/// The proof of who asks, for requests to `mirror` only.
pub fn identity(mirror: &str, bearer: &str) -> Setting {
    Setting::new(format!("http.{mirror}.extraHeader"), format!("Authorization: Bearer {bearer}"))
}

/// What a clone keeps. Without `push.negotiate` git would send (and in a partial clone first fetch) the whole tree
/// for a commit on a base that the receiver has but does not advertise.
pub fn kept() -> Vec<Setting> {
    vec![Setting::new("push.negotiate", "true")]
}

/// Settings as variables that git reads (2.31 and later), counted on from `have`. Not arguments: those are for all
/// to see.
pub fn variables(have: usize, settings: &[Setting]) -> Vec<(String, String)> {
    let mut all = vec![("GIT_CONFIG_COUNT".to_owned(), (have + settings.len()).to_string())];
    for (n, setting) in settings.iter().enumerate() {
        all.push((format!("GIT_CONFIG_KEY_{}", have + n), setting.key.clone()));
        all.push((format!("GIT_CONFIG_VALUE_{}", have + n), setting.value.clone()));
    }
    all
}

/// Variables as lines for a shell.
pub fn exports(variables: &[(String, String)]) -> String {
    let quoted = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
    variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_counted_on_and_quoted() {
        let settings = redirect("https://forge.test/o/it's", "http://127.0.0.1:1/forge.test/o/it's");
        insta::assert_snapshot!(exports(&variables(2, &settings)), @r"
        export GIT_CONFIG_COUNT='4'
        export GIT_CONFIG_KEY_2='url.http://127.0.0.1:1/forge.test/o/it'\''s.insteadOf'
        export GIT_CONFIG_VALUE_2='https://forge.test/o/it'\''s'
        export GIT_CONFIG_KEY_3='url.https://forge.test/o/it'\''s.pushInsteadOf'
        export GIT_CONFIG_VALUE_3='https://forge.test/o/it'\''s'
        ");
    }
}
