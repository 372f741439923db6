//! How counts and lists are put in messages.

use std::fmt::{Display, Write};

/// "1 pod", "2 pods".
pub(super) fn pods(count: usize) -> String {
    format!("{count} {}", if count == 1 { "pod" } else { "pods" })
}

/// "a, b, c and 2 more".
pub(crate) fn listed(items: impl IntoIterator<Item = impl Display>) -> String {
    const SHOWN: usize = 3;
    let mut text = String::new();
    let mut hidden = 0;
    for (position, item) in items.into_iter().enumerate() {
        if position >= SHOWN {
            hidden += 1;
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "{}{item}", if position == 0 { "" } else { ", " });
        }
    }
    if hidden > 0 {
        let _ = write!(text, " and {hidden} more");
    }
    text
}
