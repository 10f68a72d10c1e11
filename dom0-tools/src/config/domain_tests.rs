use super::*;

fn load_with(text: &str, overrides: &[&str]) -> Result<Loaded, Diagnostic> {
    let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
    load("/etc/xen/guest1", text, &overrides)
}

fn config(text: &str) -> DomainConfig {
    let text = format!("kernel = '/boot/vmlinuz'\n{text}");
    load_with(&text, &[])
        .unwrap_or_else(|e| panic!("{e}"))
        .config
}

fn error(text: &str) -> Diagnostic {
    let text = format!("kernel = '/boot/vmlinuz'\n{text}");
    load_with(&text, &[]).expect_err(&text)
}

#[test]
fn defaults_are_xms() {
    let config = config("");
    assert_eq!(config.name.as_str(), "guest1");
    assert_eq!((config.memory_mib, config.maxmem_mib), (128, 128));
    assert_eq!((config.vcpus, config.max_vcpus), (1, 1));
    assert_eq!(config.on_poweroff, Action::Destroy);
    assert_eq!(
        (config.on_reboot, config.on_crash),
        (Action::Restart, Action::Restart)
    );
    assert_eq!((config.cpu_weight, config.cpu_cap), (256, 0));
    assert_eq!(config.cmdline, "");
    assert_eq!((config.uuid, config.ramdisk), (None, None));
}

#[test]
fn a_whole_file() {
    let text = "
kernel  = \"/boot/vmlinuz-6.1.0\"   # the guest's
ramdisk = '/boot/initrd.img'
name    = 'web1'
memory  = '256'
maxmem  = 512
vcpus   = 2
cpus    = ['0', '1-3']
uuid    = '01234567-89ab-cdef-0123-456789abcdef'
root    = '/dev/xvda1 ro'
extra   = 'console=hvc0 quiet'
disk    = [ 'phy:/dev/vg/web1,xvda1,w',
            'file:/srv/swap,xvda2,w', ]
vif     = [ 'mac=00:16:3e:01:02:03,bridge=br0' ]
on_crash = 'preserve'
cpu_weight = 512
cpu_cap = 50
";
    let loaded = load_with(text, &[]).expect("load");
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_eq!(config.name.as_str(), "web1");
    assert_eq!((config.memory_mib, config.maxmem_mib), (256, 512));
    assert_eq!(config.cpus, [vec![0], vec![1, 2, 3]]);
    assert_eq!(config.cmdline, "root=/dev/xvda1 ro console=hvc0 quiet");
    assert_eq!((config.disks.len(), config.vifs.len()), (2, 1));
    assert_eq!((config.cpu_weight, config.cpu_cap), (512, 50));
    let json = serde_json::to_string(&config).expect("json");
    assert_eq!(
        serde_json::from_str::<DomainConfig>(&json).expect("back"),
        config
    );
}

#[test]
fn wrong_values_say_where_and_what() {
    for (text, place, message) in [
        (
            "memory = 0",
            (2, 10),
            "'memory' is 0 MiB: a domain needs at least 2 MiB",
        ),
        ("memory = 1", (2, 10), "'memory' is 1 MiB"),
        (
            "memory = 999999999",
            (2, 10),
            "more than any domain can have",
        ),
        (
            "memory = 'lots'",
            (2, 10),
            "must be a number, not the string \"lots\"",
        ),
        ("memory = 64; maxmem = 32", (2, 23), "less than 'memory'"),
        ("vcpus = 0", (2, 9), "1 to 32"),
        ("vcpus = 33", (2, 9), "1 to 32"),
        ("vcpus = 4; maxvcpus = 2", (2, 23), "less than 'vcpus'"),
        ("name = 'a b'", (2, 8), "can't stand in a domain's name"),
        ("name = ['a']", (2, 8), "must be a string, not a list"),
        ("uuid = 'x'", (2, 8), "'x' is no UUID"),
        (
            "on_reboot = 'explode'",
            (2, 13),
            "must be one of destroy, restart",
        ),
        ("on_reboot = 'coredump-destroy'", (2, 13), "must be one of"),
        ("cpus = '0,x'", (2, 8), "'x' is no CPU"),
        ("max_grant_frames = 0", (2, 20), "from 1 to 1024"),
        ("max_maptrack_frames = 1025", (2, 23), "from 0 to 1024"),
        ("cpu_weight = 0", (2, 14), "from 1 to 65535"),
        (
            "disk = ['phy:/a,xvda,w',\n 'phy:/b,xvdq,z']",
            (3, 2),
            "'z' is no disk access",
        ),
        (
            "disk = ['phy:/a,xvda,w', 'phy:/b,51712,w']",
            (2, 26),
            "same device",
        ),
        ("vif = 'colour=red'", (2, 7), "Invalid vif option: colour"),
        ("vif = ['mac=00:16:3e:0:0:0']", (2, 8), "no MAC address"),
        ("builder = 'hvm'", (2, 11), "only PV domains"),
        ("type = 'pvh'", (2, 8), "only PV domains"),
        (
            "pci = ['00:1f.0']",
            (2, 1),
            "PCI passthrough is not supported",
        ),
        ("nfs_root = '/x'", (2, 12), "needs 'nfs_server'"),
    ] {
        let error = error(text);
        assert!(error.message.contains(message), "{text}: {}", error.message);
        assert_eq!((error.line, error.column), place, "{text}");
        assert_eq!(error.file, "/etc/xen/guest1");
    }
    let long = format!("extra = '{}'", "x".repeat(1024));
    assert!(error(&long).message.contains("1024 bytes"));
}

#[test]
fn kernel_or_what_to_do_without() {
    let missing = load_with("name = 'x'", &[]).expect_err("no kernel");
    assert!(missing.message.contains("'kernel' is not set") && missing.remedy.is_some());
    let loaded = load_with(
        "bootloader = '/usr/lib/xen/bin/pygrub'; bootloader_args = ['--entry=2', '--args=quiet']; extra = 'x'",
        &[],
    );
    let config = loaded.expect("load").config;
    let loader = config.bootloader.expect("a boot loader");
    assert_eq!((config.kernel, loader.program), (None, None));
    assert_eq!(loader.choice.entry.as_deref(), Some("2"));
    assert_eq!(config.cmdline, "x quiet");
    let own = load_with("bootloader = '/opt/loader'; bootargs = '-v  a'", &[]);
    let own = own.expect("load").config.bootloader.expect("a boot loader");
    assert_eq!(own.program, Some("/opt/loader".into()));
    assert_eq!(own.args, ["-v", "a"]);
    let unknown = load_with("bootloader = 'lilo'", &[]).expect_err("unknown");
    assert!(unknown.message.contains("'lilo'"), "{}", unknown.message);
    let wrong = load_with("bootloader = 'pygrub'; bootargs = '--fast'", &[]).expect_err("wrong");
    assert!(wrong.message.contains("--fast"), "{}", wrong.message);
    let both = load_with("kernel = '/k'; bootloader = 'pygrub'", &[]).expect("both");
    assert_eq!(both.warnings.len(), 1);
}

/// In the form that xen-tools' template gives with `--pygrub --dhcp`.
#[test]
fn a_file_of_xen_tools_is_taken_without_a_warning() {
    let text = "bootloader = 'pygrub'\n\nvcpus       = '1'\nmemory      = '256'\n\n\n\
                root        = '/dev/xvda1 ro'\n\
                disk        = [\n    'file:/srv/xen/domains/web2/disk.img,xvda1,w',\n  ]\n\n\
                name        = 'web2'\n\ndhcp        = 'dhcp'\nvif         = [ '' ]\n\n\
                on_poweroff = 'destroy'\non_reboot   = 'restart'\non_crash    = 'restart'\n";
    let loaded = load_with(text, &[]).expect("load");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!(
        config.cmdline,
        "ip=:127.0.255.255::::eth0:dhcp root=/dev/xvda1 ro"
    );
    assert!(config.bootloader.is_some_and(|l| l.program.is_none()));
    assert_eq!(config.disks[0].vdev.name, "xvda1");
    assert_eq!((config.vifs.len(), config.memory_mib), (1, 256));
}

#[test]
fn ignored_keys_warn() {
    let text = "kernel='/k'\nvnc = 1\nvfb = ['sdl=1']\nmemroy = 3\npci = []";
    let warnings = load_with(text, &[]).expect("load").warnings;
    let messages: Vec<_> = warnings
        .iter()
        .map(|w| (w.line, w.message.as_str()))
        .collect();
    assert_eq!(
        messages,
        [
            (
                2,
                "ignored: 'vnc' is for HVM domains, and this is a PV domain"
            ),
            (3, "ignored: 'vfb' has no effect here"),
            (4, "ignored: unknown key 'memroy'; did you mean 'memory'?"),
        ]
    );
}

#[test]
fn the_command_line_wins() {
    let loaded = load_with(
        "kernel='/k'; memory=64",
        &["memory=32", "extra=a=b c", "name=z"],
    );
    let config = loaded.expect("load").config;
    assert_eq!(config.memory_mib, 32);
    assert_eq!(config.cmdline, "a=b c");
    assert_eq!(config.name.as_str(), "z");
    let error = load_with("kernel='/k'", &["memory=0"]).expect_err("zero");
    assert_eq!((error.file.as_str(), error.column), ("command line", 8));
}

#[test]
fn command_lines() {
    for (text, line) in [
        ("root = '/dev/xvda1'", "root=/dev/xvda1"),
        ("root = 'root=/dev/xvda1'", "root=/dev/xvda1"),
        ("extra = 3", "3"),
        ("dhcp = 'dhcp'", "ip=:127.0.255.255::::eth0:dhcp"),
        (
            "ip = '10.0.0.2'; netmask = '255.0.0.0'; gateway = '10.0.0.1'; hostname = 'h'; root = '/dev/nfs'; \
             nfs_server = '10.0.0.9'; nfs_root = '/r'; extra = 'ro'",
            "ip=10.0.0.2:10.0.0.9:10.0.0.1:255.0.0.0:h:eth0:off root=/dev/nfs nfsroot=10.0.0.9:/r ro",
        ),
        ("netmask = '255.0.0.0'", ""),
        ("cmdline = 'all of it'", "all of it"),
    ] {
        assert_eq!(config(text).cmdline, line, "{text}");
    }
}

#[test]
fn without_a_name_the_file_gives_one_or_not() {
    let error = load("/dev/my file", "kernel='/k'", &[]).expect_err("name");
    assert!(error.message.contains("'my file' can't serve"));
}

proptest::proptest! {
    #[test]
    fn any_setting_loads_or_fails(key in 0..KEYS.len(), value in "[ -~]*") {
        let argument = format!("{}={value}", KEYS[key]);
        let _ = load("a", "kernel = '/k'", &[argument]);
    }
}
