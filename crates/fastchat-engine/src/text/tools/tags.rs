//! Finds markers in a stream of characters, holding back only what may still become one.

/// Watches for several markers, none of which begins another.
#[derive(Debug)]
pub(super) struct TagFinder {
    tags: Vec<&'static str>,
    held: String,
}

impl TagFinder {
    pub(super) fn new(tags: &[&[&'static str]]) -> Self {
        Self { tags: tags.concat(), held: String::new() }
    }

    /// Takes a character; text that is no marker goes to `text`. Returns the marker it completes.
    pub(super) fn feed(&mut self, letter: char, mut text: impl FnMut(char)) -> Option<&'static str> {
        self.held.push(letter);
        while !self.held.is_empty() {
            let mut begun = self.tags.iter().filter(|tag| tag.starts_with(self.held.as_str()));
            if let Some(tag) = begun.next() {
                let whole = tag.len() == self.held.len();
                if whole {
                    self.held.clear();
                }
                return whole.then_some(*tag);
            }
            text(self.held.remove(0));
        }
        None
    }

    /// Whether a marker may have begun.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// What is held when the text ends.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
