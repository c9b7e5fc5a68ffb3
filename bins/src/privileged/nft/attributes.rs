//! Appends netlink attributes to a message. Knows their framing and nothing of their meaning.

const NESTED: u16 = 0x8000;

/// The attributes of one message, or of one nest.
pub(crate) struct Attributes<'a>(pub(super) &'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.framed(kind, |a| a.0.extend(value));
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.framed(kind, |a| {
            a.0.extend(value.as_bytes());
            a.0.push(0);
        });
    }

    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.framed(kind | NESTED, body);
    }

    fn framed(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        body(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).expect("elements are sent in parts; all else is small");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        // Attributes begin at multiples of four bytes; the padding is not part of the length.
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
