package imagefile

import (
	"encoding/binary"
	"math"
)

// The squashfs 4.0 superblock, from the kernel's fs/squashfs/squashfs_fs.h:
// little-endian, at the start of the file system.
const (
	squashMagic     = "hsqs"
	squashHeaderLen = 96
	noTable         = math.MaxUint64
)

// squash is a checked superblock. Positions are relative to base, and the
// tables lie in [tables, bytesUsed).
type squash struct {
	base          int64 // of the file system in the file
	bytesUsed     int64
	blockSize     int64
	compression   compression
	rootInode     uint64
	fragmentCount int64
	tables        int64
	inodeTable    int64
	dirTable      int64
	fragTable     int64 // -1 when there is none
}

// parseSquash checks a superblock of squashHeaderLen bytes; the error is Invalid.
func parseSquash(b []byte, base int64) (squash, error) {
	if string(b[:4]) != squashMagic {
		return squash{}, invalid("no squashfs magic")
	}
	if major, minor := binary.LittleEndian.Uint16(b[28:]), binary.LittleEndian.Uint16(b[30:]); major != 4 || minor != 0 {
		return squash{}, invalid("squashfs version %d.%d, not 4.0", major, minor)
	}
	q := squash{
		base:          base,
		blockSize:     int64(binary.LittleEndian.Uint32(b[12:])),
		compression:   compression(binary.LittleEndian.Uint16(b[20:])),
		rootInode:     binary.LittleEndian.Uint64(b[32:]),
		fragmentCount: int64(binary.LittleEndian.Uint32(b[16:])),
		fragTable:     -1,
	}
	if log := binary.LittleEndian.Uint16(b[22:]); log < 12 || log > 20 || q.blockSize != 1<<log {
		return squash{}, invalid("squashfs blocks of %d bytes", q.blockSize)
	}
	if q.compression.String() == "" {
		return squash{}, invalid("squashfs compression %d", uint16(q.compression))
	}
	used := binary.LittleEndian.Uint64(b[40:])
	if used < squashHeaderLen || used > uint64(math.MaxInt64-base) {
		return squash{}, invalid("squashfs of %d bytes", used)
	}
	q.bytesUsed = int64(used)
	q.tables = q.bytesUsed
	for at := 48; at < squashHeaderLen; at += 8 {
		table := binary.LittleEndian.Uint64(b[at:])
		if table == noTable && at != 64 && at != 72 {
			continue
		}
		if table < squashHeaderLen || table > used {
			return squash{}, invalid("squashfs table at %d of %d", table, used)
		}
		q.tables = min(q.tables, int64(table))
		switch at {
		case 64:
			q.inodeTable = int64(table)
		case 72:
			q.dirTable = int64(table)
		case 80:
			q.fragTable = int64(table)
		}
	}
	return q, nil
}

// prefetch gives the extents that a mount reads first: the superblock's page
// and the tables, which mksquashfs writes at the end.
func (q squash) prefetch() []Extent {
	tables := max(q.tables, q.bytesUsed-maxTables)
	return []Extent{
		{q.base, min(4096, tables)},
		{q.base + tables, q.bytesUsed - tables},
	}
}

func identifySquashfs(s *source, rest []byte, base int64) (Info, error) {
	info := Info{Kind: Squashfs, Need: -1, Offset: base}
	if len(rest) < squashHeaderLen {
		return info, nil
	}
	q, err := parseSquash(rest[:squashHeaderLen], base)
	if err != nil {
		return Info{}, err
	}
	info.Need = base + q.bytesUsed
	info.Complete = info.Need <= s.size
	info.Compression = q.compression.String()
	info.Tables = clip(q.prefetch(), s.size)
	return info, nil
}
