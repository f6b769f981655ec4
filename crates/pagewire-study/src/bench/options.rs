//! The command line of a benchmark.

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    filters: Vec<String>,
    /// Bytes of the region.
    pub size: u64,
    /// How often each row is measured.
    pub rounds: usize,
    /// Whether to print one JSON object.
    pub json: bool,
}

/// What the command line asks for.
pub enum Asked {
    /// To measure.
    Run(Options),
    /// To be told how to ask.
    Help,
}

impl Options {
    /// Options from the arguments behind the program's name.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
        let mut arguments = arguments.peekable();
        // Cargo says --bench when it benchmarks. When it tests, one short round shows that it works.
        let (mut size, mut rounds) = (32 << 20, 1);
        let (mut asked_size, mut asked_rounds) = (None, None);
        let (mut filters, mut json) = (Vec::new(), false);
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument, None),
            };
            let mut value =
                || value.clone().or_else(|| arguments.next()).ok_or(format!("{name} wants a value"));
            match name.as_str() {
                "--bench" => (size, rounds) = (1 << 30, 5),
                "--size" => {
                    let size = pagewire::address::parse_size(&value()?);
                    asked_size = Some(size.map_err(|error| error.to_string())?);
                }
                "--rounds" => {
                    let value = value()?;
                    let rounds = value.parse().ok().filter(|rounds| *rounds > 0);
                    asked_rounds = Some(rounds.ok_or(format!("'{value}' is no number of rounds"))?);
                }
                "--json" => json = true,
                "--help" | "-h" => return Ok(Asked::Help),
                option if option.starts_with('-') => return Err(format!("there is no option {option}")),
                filter => filters.push(filter.to_owned()),
            }
        }
        let (size, rounds) = (asked_size.unwrap_or(size), asked_rounds.unwrap_or(rounds));
        if size < 8 << 20 || size % (64 << 10) != 0 {
            return Err("the region has at least 8 MiB, in whole chunks of 64 KiB".into());
        }
        Ok(Asked::Run(Options { filters, size, rounds, json }))
    }

    /// Whether the row of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }
}
