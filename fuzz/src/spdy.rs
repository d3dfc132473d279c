//! SPDY connections that are nearly right.
//!
//! Headers are deflated, so chance alone finds no more of a client's frames than their first bytes. An input is therefore
//! a list of orders from which [`connection`] writes the frames of a client, with faults where the input asks for them.

use berth_streaming::fuzz::Headers;

/// Writes what a client would send by the orders in `input`, behind the byte that says how it is cut.
pub fn connection(input: &[u8]) -> Vec<u8> {
    let mut orders = input.iter().copied();
    let mut bytes = vec![orders.next().unwrap_or_default()];
    let mut headers = Headers::default();
    while let Some(order) = orders.next() {
        let id = u32::from(orders.next().unwrap_or_default());
        let flags = orders.next().unwrap_or_default();
        let length = usize::from(orders.next().unwrap_or_default());
        let mut some = |count: usize| orders.by_ref().take(count).collect::<Vec<u8>>();
        let begun = bytes.len();
        match order % 8 {
            // Headers as they should be, or of any bytes.
            0 | 1 => {
                let plain = if order & 8 == 0 {
                    let (name, value) = (some(length % 16), some(length / 16));
                    [
                        &[0, 0, 0, 1, 0, 0, 0, name.len() as u8],
                        &name[..],
                        &[0, 0, 0, value.len() as u8],
                        &value,
                    ]
                    .concat()
                } else {
                    some(length)
                };
                let block = headers.deflate(&plain);
                let kind = [1, 2, 8, 1][usize::from(order >> 4 & 3)];
                let fixed: &[u8] = if kind == 1 { &[0; 6] } else { &[] };
                control(&mut bytes, kind, flags, &[&id.to_be_bytes(), fixed, &block].concat());
            }
            2 | 3 => {
                let payload = some(length);
                bytes.extend(id.to_be_bytes());
                bytes.push(flags);
                bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
                bytes.extend(payload);
            }
            4 => control(&mut bytes, u16::from(order >> 4), flags, &some(length)),
            5 => control(&mut bytes, 6, flags, &id.to_be_bytes()),
            6 => control(&mut bytes, 3, flags, &[id.to_be_bytes(), [0, 0, 0, 5]].concat()),
            _ => bytes.extend(some(length)),
        }
        // A fault somewhere in it.
        if order & 0x80 != 0 && bytes.len() > begun {
            let at = begun + length % (bytes.len() - begun);
            bytes[at] ^= flags;
        }
    }
    bytes
}

fn control(bytes: &mut Vec<u8>, kind: u16, flags: u8, body: &[u8]) {
    bytes.extend([0x80, 3]);
    bytes.extend(kind.to_be_bytes());
    bytes.push(flags);
    bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
    bytes.extend(body);
}

#[cfg(test)]
mod tests {
    use super::connection;

    #[test]
    fn orders_become_frames_that_are_read_whole() {
        // Opens stream 1, sends on it, pings, and ends it.
        let orders = [3, 0, 1, 0, 0x21, b'a', b'b', b'c', 2, 1, 0, 2, b'h', b'i', 5, 7, 0, 0, 6, 1, 0, 0];
        let bytes = connection(&orders);
        assert_eq!(berth_streaming::fuzz::spdy(&bytes), Some(4), "{bytes:?}");
        assert_eq!(berth_streaming::fuzz::spdy(&[&bytes[..], &[0; 8]].concat()), None, "stream 0");
    }
}
