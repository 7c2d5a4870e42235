//! Tells addresses from names, which the tools would look up.

/// Whether `word` is made of numbers: addresses, masks, prefix lengths, ranges, ports, also several
/// with commas between. Whether they are right is for the tool to say; it looks none of them up.
pub(super) fn is_numeric(word: &str) -> bool {
    !word.is_empty() && word.split(',').all(is_number_or_address)
}

fn is_number_or_address(part: &str) -> bool {
    let hex = part.strip_prefix("0x");
    if let Some(digits) = hex {
        return digits
            .chars()
            .all(|c| c.is_ascii_hexdigit() || c == '/' || c == 'x');
    }
    let v6 = part.contains(':');
    let allowed = |c: char| {
        c.is_ascii_digit()
            || "./-".contains(c)
            || (v6 && (c.is_ascii_hexdigit() || ":[]".contains(c)))
    };
    !part.is_empty() && part.chars().all(allowed)
}

/// Whether `word` looks like a name of the domain name system: labels with dots between, letters
/// among them.
pub(super) fn is_domain_name(word: &str) -> bool {
    let label = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    word.contains('.')
        && word.chars().any(|c| c.is_ascii_alphabetic())
        && word.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_names() {
        for word in [
            "10.0.0.1",
            "10.0.0.0/255.0.0.0",
            "10.0.0.1-10.0.0.9:80-90",
            "2001:db8::1/64",
            "[2001:db8::1]:80",
            "1.2.3.4,5.6.7.8",
            "::ffff:1.2.3.4",
            "0xff",
        ] {
            assert!(is_numeric(word) && !is_domain_name(word), "{word}");
        }
        for word in [
            "localhost",
            "gw.example.org",
            "feed",
            "",
            "10.0.0.1,gw",
            "a.b",
        ] {
            assert!(!is_numeric(word), "{word}");
        }
        assert!(is_domain_name("gw.example.org") && !is_domain_name("tcp"));
    }
}
