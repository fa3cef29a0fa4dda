//! A page of metrics in Prometheus' text format, read.

/// One line: a name, its labels, and what it shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

/// The meter's own metrics of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub samples: Vec<Sample>,
}

impl Page {
    /// Lines that are none of the meter's, or that cannot be read, are left out: a newer meter may show more.
    pub fn read(text: &str) -> Page {
        let own = text.lines().filter(|line| line.starts_with("credit_meter_"));
        Page { samples: own.filter_map(sample).collect() }
    }

    pub fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The sum over all labels; `None`: it is not shown.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.of(name).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }
}

impl Sample {
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The labels, and what comes behind their closing brace.
fn labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let (value, rest) = quoted(rest)?;
        labels.push((name.to_owned(), value));
        text = rest;
    }
}

/// A text up to its closing quote, and what comes behind that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (index, character) in text.char_indices() {
        match character {
            'n' if escaped => value.push('\n'),
            '\\' | '"' if escaped => value.push(character),
            '\\' => {
                escaped = true;
                continue;
            }
            '"' => return Some((value, &text[index + 1..])),
            other => value.push(other),
        }
        escaped = false;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let page = Page::read(
            "# HELP credit_meter_rewinds_total Times.\n\
             # TYPE credit_meter_rewinds_total counter\n\
             credit_meter_rewinds_total 3\n\
             credit_meter_call_seconds_bucket{script=\"apply\",le=\"+Inf\"} 7 1790000000000\n\
             credit_meter_odd{text=\"a \\\"b\\\" {c}, d\\\\\\n\"} 1.5e3\n\
             credit_meter_broken{text=\"\n\
             credit_meter_empty{} +Inf\n\
             process_open_fds 9\n",
        );
        let names: Vec<&str> = page.samples.iter().map(|sample| sample.name.as_str()).collect();
        let expected = [
            "credit_meter_rewinds_total",
            "credit_meter_call_seconds_bucket",
            "credit_meter_odd",
            "credit_meter_empty",
        ];
        assert_eq!(names, expected);
        assert_eq!(page.sum("credit_meter_rewinds_total"), Some(3.0));
        assert_eq!((page.samples[1].label("le"), page.samples[1].label("none")), ("+Inf", ""));
        assert_eq!((page.samples[2].label("text"), page.samples[2].value), ("a \"b\" {c}, d\\\n", 1500.0));
        assert_eq!(page.sum("credit_meter_none"), None);
    }
}
