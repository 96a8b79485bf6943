// The Go side of `deno task interop`: one smux peer, client or server, over TCP on the loopback.
//
// A server prints its port first. At its end either role prints its counts as one line of JSON, and exits with 0 or 1.
// -bound limits the time of the process.
//
// A stream carries messages, and its opener ends it. A message is an op byte and a length (8 bytes, big-endian), then:
//
//	E  echo          length bytes; the same bytes come back
//	U  upload        length bytes and their SHA-256; the SHA-256 the acceptor computed comes back
//	D  download      the acceptor sends length bytes and their SHA-256; the opener answers with the SHA-256 it computed
//	H  half-closed   length bytes and the opener's FIN; the same bytes come back, then FIN
//	A  answered      length bytes; the same bytes come back, then FIN, then the opener's FIN
//	Q  quit          the acceptor sends FIN when every other stream is done
//	X  hang up       the acceptor sends FIN at once: the session ends with the other streams open
//
// Q and X make sure that no frame is in flight when the session ends: a Go client that closes with unread frames makes
// the kernel reset the connection, which a server cannot distinguish from a failure.
//
// The acceptor never sends first: smux.OpenStream loses data that arrives before it returns.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xtaci/smux"
)

var (
	role     = flag.String("role", "server", "client or server")
	port     = flag.Int("port", 0, "the port a client dials")
	version  = flag.Int("version", 1, "smux version, 1 or 2")
	frame    = flag.Int("frame", 32768, "MaxFrameSize")
	buffer   = flag.Int("buffer", 65536, "MaxStreamBuffer")
	receive  = flag.Int("receive", 4194304, "MaxReceiveBuffer")
	interval = flag.Int("interval", 10000, "KeepAliveInterval in milliseconds")
	timeout  = flag.Int("timeout", 30000, "KeepAliveTimeout in milliseconds")
	workload = flag.String("workload", "echo", "workload of a client: echo, both (also run by the server), bulk, half-close, keepalive, hold or hang-up")
	streams  = flag.Int("streams", 1, "number of streams, for workloads that have several")
	parallel = flag.Int("parallel", 1, "number of concurrent streams")
	size     = flag.Int("size", 1024, "largest message in bytes; bulk: exact size in each direction")
	large    = flag.Int("large", 0, "echo: size of every 200th message; 0: as the others")
	idle     = flag.Int("idle", 0, "keepalive: idle time in milliseconds; hold: delay before an upload is read")
	seed     = flag.Int64("seed", 1, "seed of sizes and contents")
	bound    = flag.Int("bound", 50000, "time limit of the process in milliseconds")
)

// peer is one end of the session and its counts.
type peer struct {
	session  *smux.Session
	streams  int64
	sent     int64
	received int64
	busy     sync.WaitGroup // accepted streams that are not done
	opened   chan struct{}  // closed when the server's own part of the workload is done
	quit     int32          // 1 = the client has announced the end
	failed   chan error     // the first failure of any stream
}

// stream counts the bytes of a smux stream.
type stream struct {
	s *smux.Stream
	p *peer
}

func (s stream) Read(b []byte) (int, error) {
	n, err := s.s.Read(b)
	atomic.AddInt64(&s.p.received, int64(n))
	return n, err
}

func (s stream) Write(b []byte) (int, error) {
	n, err := s.s.Write(b)
	atomic.AddInt64(&s.p.sent, int64(n))
	return n, err
}

func (s stream) send(op byte, length int) error {
	header := make([]byte, 9)
	header[0] = op
	binary.BigEndian.PutUint64(header[1:], uint64(length))
	_, err := s.Write(header)
	return err
}

// ended checks that the peer's FIN is next.
func (s stream) ended() error {
	n, err := s.Read(make([]byte, 1))
	if n == 0 && err == io.EOF {
		return nil
	}
	return fmt.Errorf("expected the peer's FIN, received %d bytes, error %v", n, err)
}

// upload sends random bytes and their hash, and checks the hash that comes back.
func (s stream) upload(length int64) error {
	hash := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(s, hash), rand.New(rand.NewSource(*seed)), length); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if _, err := s.Write(hash.Sum(nil)); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return s.expect(hash.Sum(nil))
}

// download is the other end of upload.
func (s stream) download(length int64) error {
	hash := sha256.New()
	if _, err := io.CopyN(hash, s, length); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	if err := s.expect(hash.Sum(nil)); err != nil {
		return err
	}
	_, err := s.Write(hash.Sum(nil))
	return err
}

func (s stream) expect(hash []byte) error {
	got := make([]byte, len(hash))
	if _, err := io.ReadFull(s, got); err != nil {
		return fmt.Errorf("reading a hash: %w", err)
	}
	if !bytes.Equal(got, hash) {
		return fmt.Errorf("stream %d: hash %x, the peer has %x", s.s.ID(), hash, got)
	}
	return nil
}

// exchange sends a message and checks that the same bytes come back.
func (s stream) exchange(op byte, data []byte) error {
	wrote := make(chan error, 1)
	go func() {
		err := s.send(op, len(data))
		if err == nil {
			_, err = s.Write(data)
		}
		wrote <- err
	}()
	got := make([]byte, len(data))
	n, err := io.ReadFull(s, got)
	if err != nil {
		return fmt.Errorf("stream %d: %d of %d bytes came back: %w", s.s.ID(), n, len(data), err)
	}
	if err := <-wrote; err != nil {
		return fmt.Errorf("stream %d: writing: %w", s.s.ID(), err)
	}
	if sent, back := sha256.Sum256(data), sha256.Sum256(got); sent != back {
		return fmt.Errorf("stream %d: sent %d bytes with hash %x, received hash %x", s.s.ID(), len(data), sent, back)
	}
	return nil
}

func (p *peer) open() (stream, error) {
	s, err := p.session.OpenStream()
	if err != nil {
		return stream{}, fmt.Errorf("opening a stream: %w", err)
	}
	return stream{s, p}, nil
}

// on opens a stream, works on it and closes it.
func (p *peer) on(work func(stream) error) error {
	s, err := p.open()
	if err != nil {
		return err
	}
	atomic.AddInt64(&p.streams, 1)
	if err := work(s); err != nil {
		return err
	}
	return s.s.Close()
}

// each calls work for 0 to count-1, at most parallel at a time, and returns the first error.
func each(count, parallel int, work func(i int) error) error {
	next, results := int64(-1), make(chan error, parallel)
	for w := 0; w < parallel; w++ {
		go func() {
			for {
				i := int(atomic.AddInt64(&next, 1))
				if i >= count {
					results <- nil
					return
				}
				if err := work(i); err != nil {
					results <- err
					return
				}
			}
		}()
	}
	for w := 0; w < parallel; w++ {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

// message makes the contents of the i-th message.
func message(i int) []byte {
	random := rand.New(rand.NewSource(*seed + int64(i)))
	length := random.Intn(*size + 1)
	if *large > 0 && i%200 == 100 {
		length = *large
	}
	data := make([]byte, length)
	random.Read(data)
	return data
}

// work runs the workload as the opener of streams.
func (p *peer) work() error {
	switch *workload {
	case "echo", "both":
		return each(*streams, *parallel, func(i int) error {
			return p.on(func(s stream) error { return s.exchange('E', message(i)) })
		})
	case "bulk":
		return each(2, 2, func(i int) error {
			return p.on(func(s stream) error {
				if i == 0 {
					if err := s.send('U', *size); err != nil {
						return err
					}
					return s.upload(int64(*size))
				}
				if err := s.send('D', *size); err != nil {
					return err
				}
				return s.download(int64(*size))
			})
		})
	case "hold":
		return p.on(func(s stream) error {
			if err := s.send('U', *size); err != nil {
				return err
			}
			return s.upload(int64(*size))
		})
	case "half-close":
		return each(*streams, *parallel, func(i int) error {
			return p.on(func(s stream) error {
				if err := s.exchange('A', message(i)); err != nil {
					return err
				}
				return s.ended()
			})
		})
	case "keepalive":
		return p.on(func(s stream) error {
			if err := s.exchange('E', message(0)); err != nil {
				return err
			}
			time.Sleep(time.Duration(*idle) * time.Millisecond)
			return s.exchange('E', message(1))
		})
	case "hang-up":
		return each(*streams, *parallel, func(i int) error {
			s, err := p.open()
			if err != nil {
				return err
			}
			atomic.AddInt64(&p.streams, 1)
			return s.exchange('E', message(i))
		})
	}
	return errors.New("unknown workload " + *workload)
}

// client runs the workload, announces the end and ends the session.
func (p *peer) client() error {
	go p.accept()
	if err := p.work(); err != nil {
		return err
	}
	s, err := p.open()
	if err == nil && *workload == "hang-up" {
		err = s.send('X', 0)
	} else if err == nil {
		err = s.send('Q', 0)
	}
	if err == nil {
		err = s.ended()
	}
	if err == nil {
		err = s.s.Close()
	}
	if err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	p.busy.Wait()
	return p.session.Close()
}

// server answers the client until it ends the session between two frames.
func (p *peer) server() error {
	go func() {
		if *workload == "both" {
			if err := p.work(); err != nil {
				p.fail(err)
			}
		}
		close(p.opened)
	}()
	if err := p.accept(); err != io.EOF {
		return fmt.Errorf("the session did not end cleanly: %w", err)
	}
	if atomic.LoadInt32(&p.quit) == 0 {
		return errors.New("the session ended too early")
	}
	p.busy.Wait()
	return p.session.Close()
}

// accept answers every stream of the peer and returns why the session ended.
func (p *peer) accept() error {
	for {
		s, err := p.session.AcceptStream()
		if err != nil {
			return err
		}
		p.busy.Add(1)
		go p.accepted(stream{s, p})
	}
}

func (p *peer) accepted(s stream) {
	op, err := p.answer(s)
	if err != nil {
		p.fail(fmt.Errorf("stream %d: %w", s.s.ID(), err))
	}
	if op == 0 {
		atomic.AddInt64(&p.streams, 1)
		s.s.Close()
		p.busy.Done()
		return
	}
	p.busy.Done()
	if op == 'Q' {
		p.busy.Wait()
		<-p.opened
	}
	atomic.StoreInt32(&p.quit, 1)
	s.s.Close()
}

// answer serves the messages of one stream until its end, or until the op that announces the end of the session.
func (p *peer) answer(s stream) (op byte, err error) {
	header := make([]byte, 9)
	for {
		if _, err := io.ReadFull(s, header); err == io.EOF {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
		length := int64(binary.BigEndian.Uint64(header[1:]))
		switch header[0] {
		case 'E':
			_, err = io.CopyN(s, s, length)
		case 'U':
			if *workload == "hold" {
				time.Sleep(time.Duration(*idle) * time.Millisecond)
			}
			err = s.download(length)
		case 'D':
			err = s.upload(length)
		case 'H', 'A':
			data := make([]byte, length)
			if _, err = io.ReadFull(s, data); err != nil {
				return 0, err
			}
			if header[0] == 'H' {
				if err = s.ended(); err != nil {
					return 0, err
				}
			}
			_, err = s.Write(data)
			return 0, err // Close sends the FIN
		case 'Q', 'X':
			return header[0], nil
		default:
			err = fmt.Errorf("unknown op %q", header[0])
		}
		if err != nil {
			return 0, err
		}
	}
}

func (p *peer) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
}

func connect() (net.Conn, error) {
	if *role == "client" {
		return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	return listener.Accept()
}

func (p *peer) run() error {
	conn, err := connect()
	if err != nil {
		return err
	}
	config := smux.DefaultConfig()
	config.Version = *version
	config.MaxFrameSize = *frame
	config.MaxStreamBuffer = *buffer
	config.MaxReceiveBuffer = *receive
	config.KeepAliveInterval = time.Duration(*interval) * time.Millisecond
	config.KeepAliveTimeout = time.Duration(*timeout) * time.Millisecond
	if *role == "client" {
		if p.session, err = smux.Client(conn, config); err != nil {
			return err
		}
		return p.client()
	}
	if p.session, err = smux.Server(conn, config); err != nil {
		return err
	}
	return p.server()
}

func main() {
	flag.Parse()
	p := &peer{opened: make(chan struct{}), failed: make(chan error, 1)}
	done := make(chan error, 1)
	go func() { done <- p.run() }()

	var err error
	select {
	case err = <-done:
		select {
		case err = <-p.failed: // more specific than the error of the session
		default:
		}
	case err = <-p.failed:
	case <-time.After(time.Duration(*bound) * time.Millisecond):
		err = errors.New("not ended within the time limit")
	}
	result := map[string]interface{}{
		"streams":  atomic.LoadInt64(&p.streams),
		"sent":     atomic.LoadInt64(&p.sent),
		"received": atomic.LoadInt64(&p.received),
	}
	if err != nil {
		result["error"] = err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(result)
	if err != nil {
		os.Exit(1)
	}
}
