//! What the configurations of distributions mean.

use std::collections::BTreeMap;

use super::{
    super::{bls, extlinux, grub, kernels, legacy},
    Memory, kernels_of,
};

/// In the form that Debian's update-grub writes.
const DEBIAN: &str = r#"
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
else
insmod part_gpt
font="/usr/share/grub/unicode.pf2"
fi
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	set root='hd0,gpt1'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1  1111-22
	else
	  search --no-floppy --fs-uuid --set=root 1111-22
	fi
	echo	'Loading Linux 6.1.0-21-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-21-amd64 root=UUID=1111-22 ro  quiet
	initrd	/boot/initrd.img-6.1.0-21-amd64
}
submenu 'Advanced options' $menuentry_id_option 'advanced-1' {
	menuentry 'Debian, with Linux 6.1.0-21-amd64' --class gnu $menuentry_id_option '21-advanced' {
		linux	/boot/vmlinuz-6.1.0-21-amd64 root=UUID=1111-22 ro  quiet
		initrd	/boot/initrd.img-6.1.0-21-amd64
	}
	menuentry 'Debian, with Linux 6.1.0-20-amd64' --class gnu $menuentry_id_option '20-advanced' {
		linux	/boot/vmlinuz-6.1.0-20-amd64 root=UUID=1111-22 ro  "a b=$undefined" c\ d
		initrd	/boot/early.img ($root)/boot/initrd.img-6.1.0-20-amd64
	}
}
menuentry 'Memory test' { linux16 /boot/memtest86+.bin; }
menuentry "UEFI Firmware Settings" $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"#;

fn grub_menu(default: &str, environment: &[(&str, &str)]) -> (usize, Vec<String>, Vec<String>) {
    let text = DEBIAN.replace("DEFAULT", default);
    let mut files = Memory::with(&[("/boot/grub/grub.cfg", &text)]);
    if !environment.is_empty() {
        let lines: String = environment
            .iter()
            .map(|(k, v)| format!("{k}={v}\n"))
            .collect();
        let env = format!("# GRUB Environment Block\n{lines}########");
        files.0.insert("/boot/grub/grubenv".into(), env);
    }
    let menu = grub::find(&files, "/boot/grub")
        .expect("readable")
        .expect("a menu");
    assert_eq!(menu.source, "/boot/grub/grub.cfg");
    let options = menu.entries.iter().map(|e| e.options.clone()).collect();
    let kernels = kernels_of(&menu).iter().map(|k| (*k).to_owned()).collect();
    (menu.default, kernels, options)
}

#[test]
fn grub_cfg_of_debian() {
    let (default, kernels, options) = grub_menu("0", &[]);
    assert_eq!(default, 0);
    assert_eq!(
        kernels,
        [
            "/boot/vmlinuz-6.1.0-21-amd64",
            "/boot/vmlinuz-6.1.0-21-amd64",
            "/boot/vmlinuz-6.1.0-20-amd64",
            "/boot/memtest86+.bin"
        ]
    );
    assert_eq!(options[0], "root=UUID=1111-22 ro quiet");
    assert_eq!(options[2], "root=UUID=1111-22 ro a b= c d");
}

#[test]
fn grub_defaults() {
    for (default, expected) in [
        ("0", 0),
        ("1", 1),
        ("1>1", 2),
        ("advanced-1>20-advanced", 2),
        ("Advanced options>Debian, with Linux 6.1.0-20-amd64", 2),
        ("2", 3),
        ("Memory test", 3),
        // Nothing to boot there, or nothing there: the first one.
        ("uefi-firmware", 0),
        ("99", 0),
        ("gone", 0),
        ("", 0),
    ] {
        assert_eq!(grub_menu(default, &[]).0, expected, "{default}");
    }
    let saved = [
        ("saved_entry", "advanced-1>20-advanced"),
        ("next_entry", "2"),
    ];
    assert_eq!(grub_menu("${saved_entry}", &saved).0, 2);
    assert_eq!(grub_menu("${saved_entry}", &[]).0, 0);
}

#[test]
fn grub_entries_have_ids_titles_and_ramdisks() {
    let files = Memory::with(&[("/boot/grub/grub.cfg", DEBIAN)]);
    let menu = grub::find(&files, "/boot/grub")
        .expect("readable")
        .expect("a menu");
    let entry = &menu.entries[2];
    assert_eq!(entry.id, "20-advanced");
    assert_eq!(
        entry.title,
        "Advanced options>Debian, with Linux 6.1.0-20-amd64"
    );
    assert_eq!(
        entry.ramdisks,
        ["/boot/early.img", "/boot/initrd.img-6.1.0-20-amd64"]
    );
    assert_eq!(menu.named("20-advanced"), Some(2));
    assert_eq!((menu.named("3"), menu.named("4")), (Some(3), None));
}

const FEDORA_ENTRY: &str = "title Fedora (6.5)\nversion 6.5.6-300.fc39.x86_64\nlinux /vmlinuz-6.5.6\n\
     initrd /initramfs-6.5.6.img $tuned_initrd\noptions $kernelopts rhgb\n";

#[test]
fn boot_loader_specification() {
    let entry = |version: &str| {
        format!(
            "title Debian {version}\nversion {version}\nlinux /boot/vmlinuz-{version}\ninitrd /boot/initrd.img-{version}\n\
                 # no option\noptions root=LABEL=root ro\noptions quiet\n"
        )
    };
    let (nine, ten) = (entry("6.1.0-9"), entry("6.1.0-10"));
    let mut files = Memory::with(&[
        ("/boot/loader/entries/debian-9.conf", &nine),
        ("/boot/loader/entries/debian-10.conf", &ten),
        ("/boot/loader/entries/README", "nothing"),
        ("/boot/loader/entries/empty.conf", "title empty\n"),
    ]);
    let find = |files: &Memory| {
        bls::find(files, "/boot", &BTreeMap::new())
            .expect("readable")
            .expect("a menu")
    };
    let menu = find(&files);
    assert_eq!(
        kernels_of(&menu),
        ["/boot/vmlinuz-6.1.0-10", "/boot/vmlinuz-6.1.0-9"]
    );
    assert_eq!(menu.entries[0].options, "root=LABEL=root ro quiet");
    assert_eq!(
        (menu.default, menu.entries[0].id.as_str()),
        (0, "debian-10")
    );
    files.0.insert(
        "/boot/loader/loader.conf".into(),
        "timeout 3\ndefault debian-9*\n".into(),
    );
    assert_eq!(find(&files).default, 1);
}

#[test]
fn blscfg_of_fedora() {
    let files = Memory::with(&[
        (
            "/grub2/grub.cfg",
            "load_env\nset default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n",
        ),
        (
            "/grub2/grubenv",
            "# GRUB Environment Block\nsaved_entry=b\nkernelopts=root=/dev/xvda2 ro\n##",
        ),
        (
            "/loader/entries/a.conf",
            &FEDORA_ENTRY.replace("6.5", "6.6"),
        ),
        ("/loader/entries/b.conf", FEDORA_ENTRY),
    ]);
    let menu = grub::find(&files, "/grub2")
        .expect("readable")
        .expect("a menu");
    assert_eq!(menu.default, 1);
    let entry = &menu.entries[1];
    assert_eq!(entry.options, "root=/dev/xvda2 ro rhgb");
    assert_eq!(entry.ramdisks, ["/initramfs-6.5.6.img"]);
}

#[test]
fn extlinux_conf() {
    let text = "DEFAULT l1\nTIMEOUT 50\nAPPEND global\n\nLABEL l0\n  MENU LABEL ^Debian 6.1\n  LINUX ../vmlinuz-6.1\n  \
                INITRD ../initrd-6.1\n  APPEND root=/dev/xvda1 ro\nlabel l1\n\tkernel /boot/vmlinuz-6.0\n\t\
                append initrd=/boot/a,/boot/b root=x\nlabel menu\n\tkernel menu.c32\nlabel bare\n kernel /k\n";
    let files = Memory::with(&[("/boot/extlinux/extlinux.conf", text)]);
    let menu = extlinux::find(&files, "/boot/extlinux/extlinux.conf")
        .expect("readable")
        .expect("a menu");
    assert_eq!(
        kernels_of(&menu),
        ["/boot/extlinux/../vmlinuz-6.1", "/boot/vmlinuz-6.0", "/k"]
    );
    assert_eq!(
        (menu.default, menu.entries[0].title.as_str()),
        (1, "Debian 6.1")
    );
    assert_eq!(menu.entries[1].ramdisks, ["/boot/a", "/boot/b"]);
    assert_eq!(menu.entries[1].options, "root=x");
    assert_eq!(menu.entries[2].options, "global");
}

#[test]
fn menu_lst() {
    let text = "default         2\ntimeout 2\n\ntitle Chain\nchainloader +1\n\ntitle           Debian 6.1\nroot (hd0,0)\n\
                kernel          (hd0,0)/boot/vmlinuz-6.1 root=/dev/xvda2 ro\ninitrd          /boot/initrd.img-6.1\n\n\
                title Xen\nkernel /boot/xen.gz dom0_mem=1G\nmodule /boot/vmlinuz-6.0 root=/dev/xvda2\nmodule /boot/initrd-6.0\n";
    let files = Memory::with(&[("/boot/grub/menu.lst", text)]);
    let menu = legacy::find(&files, "/boot/grub/menu.lst")
        .expect("readable")
        .expect("a menu");
    assert_eq!(
        kernels_of(&menu),
        ["/boot/vmlinuz-6.1", "/boot/vmlinuz-6.0"]
    );
    assert_eq!(menu.default, 1);
    assert_eq!(menu.entries[0].options, "root=/dev/xvda2 ro");
    assert_eq!(menu.entries[1].ramdisks, ["/boot/initrd-6.0"]);
}

#[test]
fn kernels_without_any_configuration() {
    let files = Memory::with(&[
        ("/boot/vmlinuz-6.1.0-9-amd64", ""),
        ("/boot/initrd.img-6.1.0-9-amd64", ""),
        ("/boot/vmlinuz-6.1.0-10-amd64", ""),
        ("/boot/initrd.img-6.1.0-10-amd64", ""),
        ("/boot/vmlinuz-6.1.0-11-amd64.old", ""),
        ("/boot/config-6.1.0-10-amd64", ""),
        ("/etc/kernel/cmdline", "root=LABEL=root\n ro\n"),
    ]);
    let menu = kernels::find(&files, "/boot")
        .expect("readable")
        .expect("a menu");
    assert_eq!(
        kernels_of(&menu),
        [
            "/boot/vmlinuz-6.1.0-10-amd64",
            "/boot/vmlinuz-6.1.0-9-amd64"
        ]
    );
    assert_eq!(
        menu.entries[0].ramdisks,
        ["/boot/initrd.img-6.1.0-10-amd64"]
    );
    assert_eq!(menu.entries[0].options, "root=LABEL=root ro");
    assert_eq!(kernels::find(&files, "/").expect("readable"), None);
}
