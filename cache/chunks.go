package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// chunkSize is the unit that is fetched and remembered: 128 KiB, the block
// of squashfs and of a kernel read.
const chunkSize = 128 << 10

// maxSize bounds what is believed of an image's size: the map of its chunks is
// in memory, 5 bytes each, and a server may say anything.
const maxSize = 1 << 40

// chunkCount gives the number of chunks of an image of size bytes.
func chunkCount(size int64) int { return int((size + chunkSize - 1) / chunkSize) }

// chunkLen gives the length of chunk i; the last one may be short.
func chunkLen(i int, size int64) int { return int(min(chunkSize, size-int64(i)*chunkSize)) }

// The chunk map file: a header, then one entry for each chunk.
//
//	header  magic, chunk size, image size, key, hash of the validator, CRC
//	entry   CRC-32C of the chunk, and a check over key, index and that CRC
//
// An entry is written in place right after its bytes, without fsync: after a
// kill the kernel still has both, and after a power cut an entry whose bytes did
// not make it is found out by the CRC, which is compared before a chunk of
// an earlier process is first used. So is any damage to map or data.
const (
	mapMagic  = "SRFSMAP1"
	mapHeader = 4096
	mapEntry  = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// workfile is the sparse data file of one image with its chunk map, in a
// directory of its own that this process has locked. Methods are safe for
// concurrent use on different chunks; renew and close are not safe beside others'.
type workfile struct {
	d         *disk
	dir       string // partial/<name>
	key       [32]byte
	lock      *os.File
	data      *heldFile
	chunks    *os.File
	size      int64
	validator [32]byte // SHA-256 of the pinned validator; zero if none
}

// openWorkfile takes the image's partial directory, or a private one if
// another process works on it (both may fetch; neither is wrong).
func openWorkfile(d *disk, key string) (*workfile, error) {
	w := &workfile{d: d, size: -1}
	raw, err := hex.DecodeString(key)
	if err != nil || copy(w.key[:], raw) != len(w.key) {
		return nil, errors.New("cache: not a key")
	}
	name := key
	for range 4 {
		w.dir = filepath.Join(partialDir, name)
		w.lock, err = lockPartial(d, w.dir, true)
		if err == nil {
			break
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			name = key + d.unique()
		}
	}
	if err != nil {
		return nil, err
	}
	data := filepath.Join(w.dir, "data")
	f, err := d.open(data, os.O_RDWR|os.O_CREATE)
	if err == nil {
		w.data = &heldFile{File: f}
		err = d.root.Chtimes(data, d.now(), time.Time{}) // last used, for eviction
	}
	if err == nil {
		w.chunks, err = d.open(filepath.Join(w.dir, "map"), os.O_RDWR|os.O_CREATE)
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// lockPartial takes the lock of a partial directory: unix.EWOULDBLOCK if
// somebody has it. A directory that vanished meanwhile is os.ErrNotExist.
func lockPartial(d *disk, dir string, create bool) (*os.File, error) {
	flag := os.O_RDWR
	if create {
		flag |= os.O_CREATE
		if err := d.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	name := filepath.Join(dir, "lock")
	f, err := d.open(name, flag)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	mine, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = d.root.Lstat(name); err == nil && !os.SameFile(mine, there) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removePartial deletes a partial directory whose lock the caller holds.
func removePartial(d *disk, dir string) error {
	for _, name := range []string{"data", "map", "lock"} {
		if err := d.root.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return d.root.Remove(dir)
}

// load reads the map: the CRCs of the chunks that an earlier process wrote,
// by index. Anything implausible, and any map of another size than want
// (unless that is negative), is as good as none: ok is false.
func (w *workfile) load(want int64) (crcs map[int]uint32, ok bool) {
	head := make([]byte, mapHeader)
	if _, err := w.chunks.ReadAt(head, 0); err != nil {
		return nil, false
	}
	size := int64(binary.LittleEndian.Uint64(head[12:]))
	switch {
	case string(head[:8]) != mapMagic,
		binary.LittleEndian.Uint32(head[8:]) != chunkSize,
		[32]byte(head[20:52]) != w.key,
		binary.LittleEndian.Uint32(head[84:]) != crc32.Checksum(head[:84], castagnoli),
		size < 0, want >= 0 && size != want:
		return nil, false
	}
	fi, err := w.data.Stat()
	if err != nil || fi.Size() > size {
		return nil, false
	}
	w.size, w.validator = size, [32]byte(head[52:84])
	crcs = make(map[int]uint32)
	n := chunkCount(size)
	buf := make([]byte, 512*mapEntry)
	for first := 0; first < n; first += 512 {
		got, err := w.chunks.ReadAt(buf, mapHeader+int64(first)*mapEntry)
		for i := first; i < min(first+got/mapEntry, n); i++ {
			e := buf[(i-first)*mapEntry:]
			crc := binary.LittleEndian.Uint32(e)
			end := int64(i)*chunkSize + int64(chunkLen(i, size))
			if check := binary.LittleEndian.Uint32(e[4:]); check != 0 && check == w.check(i, crc) && end <= fi.Size() {
				crcs[i] = crc
			}
		}
		if err != nil {
			if err != io.EOF {
				return nil, false
			}
			break
		}
	}
	return crcs, true
}

func (w *workfile) check(i int, crc uint32) uint32 {
	var b [44]byte
	copy(b[:], w.key[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(i))
	binary.LittleEndian.PutUint32(b[40:], crc)
	return crc32.Checksum(b[:], castagnoli)
}

// renew empties data and map and begins again for an image of size bytes,
// which may be negative: not known yet, nothing to resume. The old data file
// is closed and unlinked, not cut, because a reader may be in it.
func (w *workfile) renew(size int64) error {
	name := filepath.Join(w.dir, "data")
	if err := w.d.root.Remove(name); err != nil {
		return err
	}
	data, err := w.d.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_ = w.data.Close() // only reads are left on it
	w.data = &heldFile{File: data}
	if err := w.chunks.Truncate(0); err != nil {
		return err
	}
	return w.setHeader(size, [32]byte{})
}

// setHeader records the image's size and pins a validator. A negative size is
// kept for later only: a map without a size is not resumed.
func (w *workfile) setHeader(size int64, validator [32]byte) error {
	w.size, w.validator = size, validator
	if size < 0 {
		return nil
	}
	head := make([]byte, mapHeader)
	copy(head, mapMagic)
	binary.LittleEndian.PutUint32(head[8:], chunkSize)
	binary.LittleEndian.PutUint64(head[12:], uint64(size))
	copy(head[20:], w.key[:])
	copy(head[52:], w.validator[:])
	binary.LittleEndian.PutUint32(head[84:], crc32.Checksum(head[:84], castagnoli))
	_, err := w.chunks.WriteAt(head, 0)
	return err
}

// put writes the chunks from first on, then their entries. There are at most
// landingChunks.
func (w *workfile) put(first int, p []byte, crcs []uint32) error {
	if _, err := w.data.WriteAt(p, int64(first)*chunkSize); err != nil {
		return err
	}
	var entries [landingChunks * mapEntry]byte
	for k, crc := range crcs {
		e := entries[k*mapEntry:]
		binary.LittleEndian.PutUint32(e, crc)
		binary.LittleEndian.PutUint32(e[4:], w.check(first+k, crc))
	}
	_, err := w.chunks.WriteAt(entries[:len(crcs)*mapEntry], mapHeader+int64(first)*mapEntry)
	return err
}

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

func validatorSum(v string) [32]byte {
	if v == "" {
		return [32]byte{}
	}
	return sha256.Sum256([]byte(v))
}

// close releases the descriptors; the bytes stay.
func (w *workfile) close() error {
	var err error
	if w.data != nil {
		err = w.data.Close()
	}
	for _, f := range []*os.File{w.chunks, w.lock} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// discard removes the bytes too.
func (w *workfile) discard() error {
	err := removePartial(w.d, w.dir)
	return errors.Join(err, w.close())
}
