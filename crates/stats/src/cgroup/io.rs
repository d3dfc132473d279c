//! Reads and writes of block devices: `blkio.throttle.*` on v1, `io.stat` on v2.

use super::{Psi, psi};
use crate::{file::Folder, parse::device};

/// One device's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Reads and writes since the cgroup was made. A device that was not touched is not listed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Io {
    pub devices: Vec<DeviceIo>,
    pub psi: Option<Psi>,
}

impl Io {
    fn device(&mut self, (major, minor): (u32, u32)) -> &mut DeviceIo {
        let at = self.devices.iter().position(|known| (known.major, known.minor) == (major, minor));
        let at = at.unwrap_or_else(|| {
            self.devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
            self.devices.len() - 1
        });
        &mut self.devices[at]
    }
}

pub(super) fn read_v1(folder: &Folder) -> Option<Io> {
    let mut io = Io::default();
    // The throttling layer sees every request whatever the scheduler; the files of CFQ and BFQ are empty without it.
    // "_recursive" came with 4.17; before that a container's own cgroups below are not counted.
    let bytes = folder
        .text("blkio.throttle.io_service_bytes_recursive")
        .or_else(|| folder.text("blkio.throttle.io_service_bytes"))?;
    parse_v1(
        &mut io,
        &bytes,
        |device, read| if read { &mut device.read_bytes } else { &mut device.write_bytes },
    );
    let counts = folder
        .text("blkio.throttle.io_serviced_recursive")
        .or_else(|| folder.text("blkio.throttle.io_serviced"))
        .unwrap_or_default();
    parse_v1(&mut io, &counts, |device, read| if read { &mut device.reads } else { &mut device.writes });
    Some(io)
}

pub(super) fn read_v2(folder: &Folder) -> Option<Io> {
    let mut io = Io::default();
    let text = folder.text("io.stat");
    text.iter().for_each(|text| parse_v2(&mut io, text));
    io.psi = psi::read(folder, "io.pressure");
    (text.is_some() || io.psi.is_some()).then_some(io)
}

/// `8:0 Read 4096`; the lines of other operations are parts or sums of these two.
fn parse_v1(io: &mut Io, text: &str, slot: impl Fn(&mut DeviceIo, bool) -> &mut u64) {
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(number), Some(operation), Some(value)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let read = match operation {
            "Read" => true,
            "Write" => false,
            _ => continue,
        };
        if let (Some(number), Ok(value)) = (device(number), value.parse()) {
            *slot(io.device(number), read) = value;
        }
    }
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`; io.cost and io.latency add more fields.
fn parse_v2(io: &mut Io, text: &str) {
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(number) = fields.next().and_then(device) else { continue };
        for field in fields {
            let Some((name, value)) = field.split_once('=') else { continue };
            let Ok(value) = value.parse() else { continue };
            let device = match name {
                "rbytes" | "wbytes" | "rios" | "wios" => io.device(number),
                _ => continue,
            };
            match name {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.write_bytes = value,
                "rios" => device.reads = value,
                _ => device.writes = value,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both(bytes: &str, counts: &str) -> Io {
        let mut io = Io::default();
        parse_v1(
            &mut io,
            bytes,
            |device, read| if read { &mut device.read_bytes } else { &mut device.write_bytes },
        );
        parse_v1(&mut io, counts, |device, read| if read { &mut device.reads } else { &mut device.writes });
        io
    }

    #[test]
    fn v1_has_a_line_for_each_operation() {
        let io = both(
            "254:0 Read 1454080\n254:0 Write 40960\n254:0 Sync 1495040\n254:0 Async 0\n254:0 Discard 0\n\
             254:0 Total 1495040\n7:1 Read 8192\n7:1 Write 0\nTotal 1503232\n",
            "254:0 Read 33\n254:0 Write 2\n7:1 Read 1\nTotal 36\n",
        );
        assert_eq!(
            io.devices,
            [
                DeviceIo {
                    major: 254,
                    minor: 0,
                    read_bytes: 1_454_080,
                    write_bytes: 40_960,
                    reads: 33,
                    writes: 2
                },
                DeviceIo { major: 7, minor: 1, read_bytes: 8192, write_bytes: 0, reads: 1, writes: 0 },
            ]
        );
        assert_eq!(both("Total 0\n", "Total 0\n").devices, []);
    }

    #[test]
    fn v2_has_a_line_for_each_device() {
        let mut io = Io::default();
        let text = "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n\
                    8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021 cost.usage=4\n\
                    259:1 \n";
        parse_v2(&mut io, text);
        assert_eq!(io.devices.len(), 2, "a device without numbers is not listed");
        assert_eq!(io.devices[1].writes, 1252);
        assert_eq!(io.devices[0].read_bytes, 1_459_200);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "([0-9]{1,11}:[0-9]{1,11} (Read|Write|rbytes=|x) ?-?[0-9]{0,22}\n){0,5}|\\PC*") {
            both(&text, &text);
            parse_v2(&mut Io::default(), &text);
        }
    }
}
