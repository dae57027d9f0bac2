//! What a parser tells its reader, neighbours of one kind joined.

/// One thing that happened in the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text for the user.
    Content(String),
    /// Text the model thinks (formats that carry it in the same stream).
    Reasoning(String),
    /// A call began.
    Start {
        /// Position among the calls of this output.
        index: u32,
        /// Function to call.
        name: String,
    },
    /// More of a call's arguments, JSON text.
    Arguments {
        /// The call's position.
        index: u32,
        /// Text to append.
        delta: String,
    },
}

/// Collects events. Blanks in content are held: those around calls belong to the format, not to the text.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: Vec<ToolEvent>,
    calls: u32,
    blanks: String,
    has_content: bool,
    /// Only blanks since the last call.
    after_call: bool,
}

impl Events {
    pub(super) fn content(&mut self, letter: char) {
        if letter.is_whitespace() {
            self.blanks.push(letter);
            return;
        }
        let mut text = std::mem::take(&mut self.blanks);
        if self.calls > 0 && !self.has_content {
            text.clear();
        }
        self.has_content = true;
        self.after_call = false;
        text.push(letter);
        match self.queue.last_mut() {
            Some(ToolEvent::Content(last)) => last.push_str(&text),
            _ => self.queue.push(ToolEvent::Content(text)),
        }
    }

    pub(super) fn content_all(&mut self, text: &str) {
        text.chars().for_each(|letter| self.content(letter));
    }

    pub(super) fn reasoning(&mut self, letter: char) {
        match self.queue.last_mut() {
            Some(ToolEvent::Reasoning(last)) => last.push(letter),
            _ => self.queue.push(ToolEvent::Reasoning(letter.into())),
        }
    }

    pub(super) fn start(&mut self, name: &str) {
        self.blanks.clear();
        self.queue.push(ToolEvent::Start { index: self.calls, name: name.to_owned() });
        self.calls += 1;
        self.after_call = true;
    }

    /// Appends to the arguments of the call begun last.
    pub(super) fn arguments(&mut self, text: &str) {
        match self.queue.last_mut() {
            Some(ToolEvent::Arguments { delta, .. }) => delta.push_str(text),
            _ => self.queue.push(ToolEvent::Arguments { index: self.calls.saturating_sub(1), delta: text.to_owned() }),
        }
    }

    pub(super) fn argument(&mut self, letter: char) {
        self.arguments(letter.encode_utf8(&mut [0; 4]));
    }

    /// Whether only blanks have come as content, at the beginning or since a call.
    pub(super) fn at_start(&self) -> bool {
        !self.has_content || self.after_call
    }

    pub(super) fn calls(&self) -> u32 {
        self.calls
    }

    pub(super) fn take(&mut self) -> Vec<ToolEvent> {
        std::mem::take(&mut self.queue)
    }

    /// The output has ended: blanks at the end are text unless calls came.
    pub(super) fn end(&mut self) {
        let blanks = std::mem::take(&mut self.blanks);
        if self.calls == 0 && !blanks.is_empty() {
            match self.queue.last_mut() {
                Some(ToolEvent::Content(last)) => last.push_str(&blanks),
                _ => self.queue.push(ToolEvent::Content(blanks)),
            }
        }
    }
}
