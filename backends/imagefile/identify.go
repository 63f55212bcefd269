// Package imagefile tells what an image file is: which format, whether all of
// it is there, which of its bytes a runtime wants first, and what it says about
// itself. It reads through io.ReaderAt, in few and small reads, and trusts
// nothing it reads: every count, offset and size is checked before use, and
// what it allocates is bounded whatever the bytes say.
package imagefile

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/sregistry/sregistry-fs/backends"
)

// Kind is the format of an image file.
type Kind uint8

// The kinds. Unknown is a file that is too short to tell, or whose header is
// not written yet.
const (
	Unknown Kind = iota
	SIF
	Squashfs
	Ext3
)

// String gives the kind in lower case.
func (k Kind) String() string {
	switch k {
	case SIF:
		return "sif"
	case Squashfs:
		return "squashfs"
	case Ext3:
		return "ext3"
	}
	return "unknown"
}

// Extent is a run of bytes in a file: Len bytes from Off.
type Extent struct{ Off, Len int64 }

// Info is what the headers of an image file say.
type Info struct {
	Kind Kind
	// Complete says that everything the headers promise lies within the file.
	// It says nothing about the bytes there.
	Complete bool
	// Need is the least size in bytes at which the file could be complete, or -1 when
	// the headers that tell are not all there.
	Need int64
	// Offset is where the root file system starts; -1 when there is none or
	// its place is not known yet.
	Offset int64
	// Compression is mksquashfs's name for how a squashfs root is compressed,
	// or empty.
	Compression string
	// Encrypted says that the root file system is encrypted, so that only the SIF's
	// own data objects can be read.
	Encrypted bool
	// Arch is the architecture by Go's name (amd64, arm64, …), or empty: only
	// a SIF tells.
	Arch string
	// Tables are the extents that a mount reads first: headers, and the tables
	// of the root file system. All lie within the file; ascending.
	Tables []Extent
}

const (
	// headLen is the first read: it holds a SIF's header, its descriptors, and
	// in most images its definition file and inspect data.
	headLen = 64 << 10
	// maxTables bounds the prefetch that a header can ask for, in bytes.
	maxTables = 64 << 20

	launchWord = " run-singularity\n" // ends the line that Singularity 2 puts before a file system
	maxLaunch  = 256                  // where that line must have ended
)

// Identify reads the headers of an image of size bytes.
//
// A file that is no image, whatever may follow, is an *backends.Error of kind
// Invalid. A file whose bytes so far could become an image (the beginning of a
// launch line or a header, or zeros where the header will be: builders write
// it last) is Unknown, not complete and no error. Errors of r are returned
// wrapped.
func Identify(r io.ReaderAt, size int64) (Info, error) {
	return identify(newSource(context.Background(), r, size))
}

func identify(s *source) (Info, error) {
	head, err := s.read(0, min(s.size, headLen), 0)
	if err != nil {
		return Info{}, err
	}
	if isSIF(head) {
		img, err := readSIF(s)
		return img.info, err
	}
	base := launchLen(head)
	rest := head[base:]
	switch {
	case bytes.HasPrefix(rest, []byte(squashMagic)):
		return identifySquashfs(s, rest, base)
	case len(rest) >= extMagicAt+2 && binary.LittleEndian.Uint16(rest[extMagicAt:]) == extMagic:
		return identifyExt(s, rest, base)
	case couldBecomeImage(head, rest):
		return Info{Need: -1, Offset: -1}, nil
	}
	return Info{}, invalid("not a SIF, squashfs or ext3 image")
}

// launchLen gives the length of the launch line at the start of a bare file
// system, or 0. Runtimes take any line that ends in "run-singularity".
func launchLen(head []byte) int64 {
	if !bytes.HasPrefix(head, []byte("#!")) {
		return 0
	}
	line, _, ok := bytes.Cut(head[:min(len(head), maxLaunch)], []byte(launchWord))
	if !ok || bytes.IndexByte(line, '\n') >= 0 {
		return 0
	}
	return int64(len(line) + len(launchWord))
}

// couldBecomeImage reports whether more bytes could make an image of head;
// rest is head without its launch line.
func couldBecomeImage(head, rest []byte) bool {
	if len(head) < sifMagicAt+len(sifMagic) {
		script, magic := head, []byte(nil)
		if len(head) > sifMagicAt {
			script, magic = head[:sifMagicAt], head[sifMagicAt:]
		}
		launch := allZero(script) || bytes.HasPrefix(script, []byte("#!")) || string(script) == "#"
		if launch && bytes.HasPrefix([]byte(sifMagic), magic) {
			return true
		}
	}
	// The shortest header is squashfs's; the bytes after it may be there already.
	return bytes.HasPrefix([]byte(squashMagic), rest) || allZero(rest[:min(len(rest), squashHeaderLen)])
}

func allZero(b []byte) bool {
	return len(bytes.TrimLeft(b, "\x00")) == 0
}

// The ext2/3/4 superblock, from the kernel's ext4 documentation: 1,024 bytes
// after the start of the file system, little-endian.
const (
	extSuper   = 1024
	extMagicAt = extSuper + 56
	extMagic   = 0xEF53
	extHeader  = extSuper + 1024
	ext64Bit   = 0x80 // incompatible feature: block counts have a high half
)

func identifyExt(s *source, rest []byte, base int64) (Info, error) {
	info := Info{Kind: Ext3, Need: -1, Offset: base}
	if len(rest) < extHeader {
		return info, nil
	}
	super := rest[extSuper:]
	blocks := uint64(binary.LittleEndian.Uint32(super[4:]))
	if binary.LittleEndian.Uint32(super[96:])&ext64Bit != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(super[0x150:])) << 32
	}
	logSize := binary.LittleEndian.Uint32(super[24:])
	perGroup := uint64(binary.LittleEndian.Uint32(super[32:]))
	if logSize > 6 || blocks == 0 || perGroup == 0 || blocks > math.MaxInt64>>(10+logSize)-1 {
		return Info{}, invalid("damaged ext3 superblock")
	}
	block := int64(1024) << logSize
	info.Need = base + int64(blocks)*block
	info.Complete = info.Need <= s.size
	// The group descriptors fill the block after the superblock's.
	groups := int64(min(blocks/perGroup+1, maxTables/64))
	descriptors := max(extHeader, block) + groups*32
	info.Tables = clip([]Extent{{base, descriptors}}, s.size)
	return info, nil
}

// clip keeps the parts of the extents that lie within size.
func clip(extents []Extent, size int64) []Extent {
	var kept []Extent
	for _, e := range extents {
		if n := min(e.Len, size-e.Off); n > 0 {
			kept = append(kept, Extent{e.Off, n})
		}
	}
	return kept
}

func invalid(format string, args ...any) error {
	return &backends.Error{
		Op: "identify", Kind: backends.Invalid, Err: fmt.Errorf(format, args...),
		Hint: "images are SIF, squashfs or ext3 files, as singularity or apptainer build writes them",
	}
}

func corrupt(format string, args ...any) error {
	return backends.Errorf("inspect", backends.Ref{}, backends.Corrupt, format, args...)
}
