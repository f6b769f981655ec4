//! Who may read and who may write which region: decisions, and the file that they are written in.
//!
//! ```toml
//! [regions.db]
//! read = ["*"]
//! write = ["alice.example", "backup"]
//!
//! [regions."*"]
//! read = ["backup"]
//! ```
//!
//! A name is one of the DNS names in a client's certificate. What is not allowed is denied.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::address::check_name;
use crate::error::{Error, ErrorKind, Result};

/// Stands for every region that the file does not name, and for everybody who has a valid certificate.
const ANY: &str = "*";

/// Who may read and write which region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permissions {
    regions: BTreeMap<String, Rule>,
}

/// Who may do what with a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
}

/// What somebody may do with a region. Each allows what those before it allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::access) enum Access {
    /// Not even know that it is there.
    Nothing,
    Read,
    Write,
}

impl Permissions {
    /// The permissions that a file holds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] for what is no TOML, for keys that mean nothing, and for names that no region
    /// and no certificate can have.
    pub fn parse(text: &str) -> Result<Self> {
        let mut permissions: Self = toml::from_str(text).map_err(|error| {
            // What the parser prints has several lines, with the place drawn.
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Error::new(ErrorKind::Usage, format!("line {line}: {}", error.message().replace('\n', " ")))
        })?;
        for (region, rule) in &mut permissions.regions {
            check_name(region)?;
            for name in rule.read.iter_mut().chain(&mut rule.write) {
                name.make_ascii_lowercase();
                if name != ANY && !is_dns_name(name) {
                    let text = format!("'{name}', who may use '{region}', is no DNS name of a certificate");
                    return Err(Error::new(ErrorKind::Usage, text));
                }
            }
        }
        Ok(permissions)
    }

    /// Whether every region that is named is among those that are offered: a name that was written wrongly
    /// would deny in silence.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] where one is not.
    pub(in crate::access) fn check(&self, is_offered: impl Fn(&str) -> bool) -> Result<()> {
        match self.regions.keys().find(|region| *region != ANY && !is_offered(region)) {
            Some(region) => {
                let text = format!("the permissions name a region '{region}', which is not offered");
                Err(Error::new(ErrorKind::Usage, text))
            }
            None => Ok(()),
        }
    }

    /// Whether there is a name that could be permitted something: the server `knows_clients` by the authorities that
    /// sign their certificates.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] where it does not.
    pub(in crate::access) fn check_known(&self, knows_clients: bool) -> Result<()> {
        if knows_clients {
            return Ok(());
        }
        let text = "permissions are for the names in clients' certificates: name the authorities that sign them \
                    (--tls-clients)";
        Err(Error::new(ErrorKind::Usage, text))
    }

    /// What may be done with a region by whoever has shown a valid certificate with these names, in small
    /// letters; none has shown none.
    pub(in crate::access) fn of(&self, region: &str, names: Option<&[String]>) -> Access {
        let (Some(names), Some(rule)) = (names, self.regions.get(region).or_else(|| self.regions.get(ANY)))
        else {
            return Access::Nothing;
        };
        let is_among = |allowed: &[String]| allowed.iter().any(|name| name == ANY || names.contains(name));
        match (is_among(&rule.write), is_among(&rule.read)) {
            (true, _) => Access::Write,
            (false, true) => Access::Read,
            (false, false) => Access::Nothing,
        }
    }
}

/// Whether a certificate can have this name, and it is not one for many.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[regions.db]
read = ["*"]
write = ["Alice.Example", "backup"]

[regions.secret]
read = ["alice.example"]

[regions.closed]

[regions."*"]
write = ["backup"]
"#;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_allowed_is_allowed_and_nothing_else() {
        let permissions = Permissions::parse(FILE).unwrap();
        let (alice, backup) = (names(&["alice.example"]), names(&["x", "backup"]));
        let (mallory, nameless) = (names(&["mallory", "*", "*.example"]), names(&[]));
        for (region, who, access) in [
            ("db", &alice, Access::Write),
            ("db", &backup, Access::Write),
            ("db", &mallory, Access::Read),
            ("db", &nameless, Access::Read),
            ("secret", &alice, Access::Read),
            ("secret", &backup, Access::Nothing),
            ("secret", &mallory, Access::Nothing),
            ("closed", &alice, Access::Nothing),
            ("closed", &backup, Access::Nothing),
            ("another", &backup, Access::Write),
            ("another", &alice, Access::Nothing),
            ("*", &mallory, Access::Nothing),
        ] {
            assert_eq!(permissions.of(region, Some(who)), access, "{region}, {who:?}");
            assert_eq!(permissions.of(region, None), Access::Nothing, "no certificate allows nothing");
        }
        assert_eq!(Permissions::default().of("db", Some(&alice)), Access::Nothing);
    }

    #[test]
    fn a_file_that_says_something_else_is_refused() {
        for (text, reason) in [
            ("", "regions"),
            ("regions = 3", "line 1"),
            ("[regions.db]\nread = \"alice\"", "line 2"),
            ("[regions.db]\n\nraed = [\"alice\"]", "line 3: unknown field `raed`"),
            ("[region.db]\nread = []", "unknown field `region`"),
            ("[regions.db]\nread = [\"alice\"]\n[regions.db]\nread = [\"bob\"]", "line 3"),
            ("[regions.db]\nread = [\"*.example\"]", "'*.example'"),
            ("[regions.db]\nread = [\"\"]", "no DNS name"),
            ("[regions.db]\nread = [\"alice example\"]", "no DNS name"),
            ("[regions.\"\"]\nread = []", "1 to 255"),
            ("regions.db = [", "line 1"),
        ] {
            let error = Permissions::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_region_that_is_not_offered_is_a_slip() {
        let permissions = Permissions::parse(FILE).unwrap();
        permissions.check(|region| ["db", "secret", "closed"].contains(&region)).unwrap();
        let error = permissions.check(|region| region != "secret").unwrap_err();
        assert!(error.to_string().contains("'secret'"), "{error}");
    }
}
