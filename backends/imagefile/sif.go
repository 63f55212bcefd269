package imagefile

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"strings"
)

// A SIF's global header and descriptors, from the SIF specification
// (github.com/sylabs/sif, pkg/sif): packed, little-endian. They are parsed here because
// the library allocates whatever the header's count says and accepts a
// file that ends before its objects do.
const (
	sifMagic         = "SIF_MAGIC\x00"
	sifMagicAt       = 32 // after the launch script
	sifArchAt        = 45
	sifHeaderLen     = 128
	sifDescriptorLen = 585
	maxDescriptors   = 1024 // builders make room for 48

	sifDeffile     = 0x4001
	sifPartition   = 0x4004
	sifGenericJSON = 0x4006

	sifFsSquash          = 1
	sifFsEncryptedSquash = 5
	sifPartPrimSys       = 2

	// inspectObject is the name under which builders store what
	// "inspect --all --json" prints (Singularity since 3.6, Apptainer).
	inspectObject = "inspect-metadata.json"
)

type sifObject struct {
	kind   uint32
	fs     uint32 // of a partition
	part   uint32
	name   string
	extent Extent
}

type sifImage struct {
	info    Info
	objects []sifObject
	root    *squash // nil unless the root is a readable squashfs
}

func isSIF(head []byte) bool {
	return len(head) >= sifMagicAt && bytes.HasPrefix(head[sifMagicAt:], []byte(sifMagic))
}

// readSIF reads header, descriptors, and the superblock of the root. Only an
// impossible header is an error (Invalid); one that is cut short is incomplete.
func readSIF(s *source) (sifImage, error) {
	img := sifImage{info: Info{Kind: SIF, Need: -1, Offset: -1}}
	if s.size < sifHeaderLen {
		return img, nil
	}
	h, err := s.read(0, sifHeaderLen, headLen)
	if err != nil {
		return img, err
	}
	img.info.Arch = sifArch(h[sifArchAt:])
	total := int64(binary.LittleEndian.Uint64(h[88:]))
	off := int64(binary.LittleEndian.Uint64(h[96:]))
	length := int64(binary.LittleEndian.Uint64(h[104:]))
	if version := string(h[42:45]); version != "01\x00" {
		return img, invalid("SIF version %q", version)
	}
	if total < 0 || total > maxDescriptors || off < sifHeaderLen || length < total*sifDescriptorLen ||
		length > math.MaxInt64-off {
		return img, invalid("SIF header: %d descriptors in %d bytes at %d", total, length, off)
	}
	if total == 0 || off+length > s.size {
		return img, nil
	}
	raw, err := s.read(off, total*sifDescriptorLen, 0)
	if err != nil {
		return img, err
	}
	need := off + length
	for ; len(raw) > 0; raw = raw[sifDescriptorLen:] {
		d := raw[:sifDescriptorLen]
		if d[4] == 0 { // not in use
			continue
		}
		o := sifObject{
			kind: binary.LittleEndian.Uint32(d),
			name: strings.TrimRight(string(d[73:201]), "\x00"),
			extent: Extent{
				Off: int64(binary.LittleEndian.Uint64(d[17:])),
				Len: int64(binary.LittleEndian.Uint64(d[25:])),
			},
		}
		if o.extent.Off < 0 || o.extent.Len < 0 || o.extent.Len > math.MaxInt64-o.extent.Off {
			return img, invalid("SIF object of %d bytes at %d", o.extent.Len, o.extent.Off)
		}
		if o.kind == sifPartition {
			o.fs = binary.LittleEndian.Uint32(d[201:])
			o.part = binary.LittleEndian.Uint32(d[205:])
		}
		need = max(need, o.extent.Off+o.extent.Len)
		img.objects = append(img.objects, o)
	}
	if len(img.objects) == 0 { // made, but not filled yet
		return img, nil
	}
	img.info.Need = need
	img.info.Complete = need <= s.size
	img.info.Tables = []Extent{{0, off + length}}
	err = img.readRoot(s)
	img.info.Tables = clip(img.info.Tables, s.size)
	slices.SortFunc(img.info.Tables, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	return img, err
}

// readRoot looks into the primary system partition. What it finds there can
// make the image incomplete, never invalid: a SIF may hold any file system.
func (img *sifImage) readRoot(s *source) error {
	for _, o := range img.objects {
		if o.kind != sifPartition || o.part != sifPartPrimSys {
			continue
		}
		img.info.Offset = o.extent.Off
		img.info.Encrypted = o.fs == sifFsEncryptedSquash
		if o.fs != sifFsSquash || o.extent.Len < squashHeaderLen || o.extent.Off > s.size-squashHeaderLen {
			return nil
		}
		super, err := s.read(o.extent.Off, squashHeaderLen, 0)
		if err != nil {
			return err
		}
		if allZero(super) { // a hole where the root will be
			img.info.Complete, img.info.Need = false, -1
			return nil
		}
		if root, err := parseSquash(super, o.extent.Off); err == nil {
			img.setRoot(s, root, o.extent.Len)
		}
		return nil
	}
	return nil
}

// setRoot notes a squashfs root that has room bytes of the SIF.
func (img *sifImage) setRoot(s *source, root squash, room int64) {
	img.info.Compression = root.compression.String()
	img.info.Tables = append(img.info.Tables, root.prefetch()...)
	if root.bytesUsed <= room {
		img.root = &root
		return
	}
	// The partition cuts its file system short: only a longer file can mend that.
	img.info.Complete = false
	if end := root.base + root.bytesUsed; end > s.size {
		img.info.Need = max(img.info.Need, end)
	} else {
		img.info.Need = -1
	}
}

// find gives the first object of a kind and, unless empty, a name.
func (img *sifImage) find(kind uint32, name string) (Extent, bool) {
	for _, o := range img.objects {
		if o.kind == kind && (name == "" || o.name == name) {
			return o.extent, true
		}
	}
	return Extent{}, false
}

// sifArch gives Go's name for the header's architecture code, or "".
func sifArch(code []byte) string {
	names := [...]string{
		"", "386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "mips", "mipsle",
		"mips64", "mips64le", "s390x", "riscv64", "loong64",
	}
	if code[0] < '0' || code[0] > '9' || code[1] < '0' || code[1] > '9' || code[2] != 0 {
		return ""
	}
	n := int(code[0]-'0')*10 + int(code[1]-'0')
	if n >= len(names) {
		return ""
	}
	return names[n]
}
