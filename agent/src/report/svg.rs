//! Pieces of SVG and HTML. What comes from elsewhere, names above all, gets in through [`escape`] only.

use std::fmt::Write;

/// Text that can stand anywhere in HTML or SVG, in attributes too. What XML does not allow at all becomes a mark.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A drawing: grows downwards, has no size until it is finished.
#[derive(Debug, Default)]
pub struct Drawing(String);

/// Where the middle of a text is.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// It begins here.
    Start,
    /// It is centred here.
    Middle,
    /// It ends here.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

impl Drawing {
    /// A rectangle that tells `title` when pointed at.
    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), title: &str) {
        let (width, title) = (width.max(0.0), escape(title));
        // Writing to a string cannot fail.
        let _ = write!(
            self.0,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
             <title>{title}</title></rect>"
        );
    }

    /// A cell of a heat map, with this share of its colour.
    pub fn cell(&mut self, share: f64, (x, y): (f64, f64), (width, height): (f64, f64), title: &str) {
        let title = escape(title);
        let _ = write!(
            self.0,
            "<rect class=\"heat\" fill-opacity=\"{share:.2}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.2}\" \
             height=\"{height:.2}\"><title>{title}</title></rect>"
        );
    }

    /// A text.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let (anchor, text) = (anchor.name(), escape(text));
        let _ = write!(
            self.0,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// A line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = write!(
            self.0,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    /// A line through many points.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)], close: bool) {
        let mut d = String::new();
        for (at, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
        }
        let _ = write!(self.0, "<path class=\"{class}\" d=\"{d}{}\"/>", if close { "Z" } else { "" });
    }

    /// The whole drawing, which says `label` to those who cannot see it.
    pub fn finish(self, width: f64, height: f64, label: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">{}</svg>\n",
            escape(label),
            self.0
        )
    }
}
