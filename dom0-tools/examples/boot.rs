//! Boots a kernel without xenstore: for bringing the hypervisor up.
use dom0_tools::builder::{self, BuildSpec, KernelImage, Ramdisk};
use domus_privcmd::{client::Client, protocol::CreateDomain};
use std::{io::Write, path::Path, sync::atomic::{AtomicU32, Ordering}, time::{Duration, Instant}};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let (sock, kernel, initrd, mem, vcpus, cmdline) = (&args[1], &args[2], &args[3], &args[4], &args[5], &args[6]);
    let input = args.get(7).cloned().unwrap_or_default();
    let client = Client::connect(Path::new(sock))?;
    let image = KernelImage::open(Path::new(kernel))?;
    let pages: u64 = mem.parse::<u64>()? * 256;
    let t0 = Instant::now();
    let dom = client.create_domain(CreateDomain { dom: None, uuid: uuid::Uuid::new_v4(), max_vcpus: vcpus.parse()?, max_pages: pages })?;
    let dom0 = guest_abi::addr::DomId(0);
    let store = client.evtchn_alloc_unbound(dom, dom0)?;
    let console = client.evtchn_alloc_unbound(dom, dom0)?;
    let ramdisk = if initrd == "-" { None } else { Some(Ramdisk::open(Path::new(initrd))?) };
    let spec = BuildSpec { memory_pages: pages, ramdisk, cmdline: cmdline.clone(), flags: 0, store_port: store, console_port: console };
    let built = builder::build(&client, dom, &image, &spec)?;
    eprintln!("[built domain {dom} in {:?}]", t0.elapsed());
    let (port, _fd) = client.evtchn_bind_interdomain(dom, console)?;
    let memory = client.map_memory(dom)?;
    let file = std::fs::File::from(memory.fd);
    let map = vm_memory::MmapRegion::<()>::from_file(vm_memory::FileOffset::new(file, 0), usize::try_from(pages * 4096)?)?;
    let ring = unsafe { map.as_ptr().add(usize::try_from((built.console_mfn.0 - memory.base_mfn.0) * 4096)?) };
    let word = |off: usize| unsafe { &*(ring.add(off) as *const AtomicU32) };
    let t0 = Instant::now();
    client.unpause_domain(dom)?;
    let mut dmesg = 0;
    let mut input: std::collections::VecDeque<u8> = input.replace("\\n", "\n").bytes().collect();
    let mut seen = Vec::new();
    let deadline = Duration::from_secs(std::env::var("SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(60));
    loop {
        let (cons, prod) = (word(3080).load(Ordering::SeqCst), word(3084).load(Ordering::SeqCst));
        let mut c = cons;
        let mut out = Vec::new();
        while c != prod { out.push(unsafe { *ring.add(1024 + (c as usize & 2047)) }); c = c.wrapping_add(1); }
        if c != cons { word(3080).store(c, Ordering::SeqCst); client.evtchn_notify(port)?; std::io::stdout().write_all(&out)?; std::io::stdout().flush()?; seen.extend(&out);
            if seen.windows(17).any(|w| w == b"Domus guest ready") && !seen.is_empty() { if !input.is_empty() || true { } } }
        if seen.windows(5).any(|w| w.starts_with(b"/ # ")) && !input.is_empty() {
            let mut p = word(3076).load(Ordering::SeqCst);
            while let Some(b) = input.pop_front() { unsafe { *ring.add(p as usize & 1023) = b }; p = p.wrapping_add(1); }
            word(3076).store(p, Ordering::SeqCst); client.evtchn_notify(port)?;
        }
        let (start, bytes) = client.read_console(dmesg, false)?;
        dmesg = start + bytes.len() as u64;
        std::io::stdout().write_all(&bytes)?; std::io::stdout().flush()?;
        let info = client.domain_info(dom)?;
        if info.shutdown.is_some() || t0.elapsed() > deadline { eprintln!("[{:?}: {info:?}]", t0.elapsed()); break; }
        std::thread::sleep(Duration::from_millis(5));
    }
    client.destroy_domain(dom)?;
    Ok(())
}
