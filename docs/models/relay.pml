/*
 * The relay. docs/relay.md explains the algorithm; `make model` searches this file, some of it at a time:
 *
 *   (always)  TXS transactions that insert up to ROWS rows of two keys, two lanes, crashes at every step
 *   FLOOR     the floor by its plain rule: a candidate waits until nothing of its P is open (floor.pml: the full rule)
 *   PARKING   rows that fail, answers that get lost, deadlines that pass, parked keys, RETRIES retries
 *   ZOMBIE    a lane or a retry that was stopped, has lost its locks, and still sends what it had read
 *   DRAINS    crashes, failures and stops come to an end
 *
 * Shown: no read misses a row. Nothing is published twice unless something crashed, was stopped or got no answer. The
 * first publication of a row comes after those of all rows of its key that were committed before it. The first row of a
 * parked key is always due. With DRAINS, all is published in the end and nothing stays parked.
 *
 * All keys share one slot. Another slot is another lock; what slots share is the floor's candidate: floor.pml has that.
 */

#ifndef TXS
#define TXS 2
#endif
#ifndef ROWS
#define ROWS 3
#endif
#ifndef RETRIES
#define RETRIES 2
#endif
#ifndef BATCH
#define BATCH 2 /* rows of a claim, at most */
#endif

#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)
#define FIRST(set) ((set) & -(set)) /* the lowest id of these */
#define MAX(a, b) ((a) > (b) -> (a) : (b))

/*
 * The database. Sets are bits: bit r is the row with the id r + 1, bit t the transaction with the xid t + 1. What a
 * COMMIT changes, it changes in one step.
 */
byte last_xid = 0;     /* the last that a writer drew */
byte ended = 0;        /* transactions that have ended */
byte last_id = 0;      /* the sequence's last value */
byte outbox = 0;       /* rows */
byte parked = 0;       /* rows; their order is that of their ids, as `settle` asserts */
byte due = 0;          /* rows of parked that may be tried */
byte second_key = 0;   /* rows; all others have the first key */
bool key_locked[2];    /* what serialises the writers of a key */
byte slot_holder = 0;  /* 0: nobody */
byte slot_waiters = 0; /* a try-lock gives way to those that wait */
byte row_locks = 0;    /* rows of parked */

#define IDS_TO(id) (BIT(id) - 1) /* rows with this id or a lower one */
#define OPEN ((BIT(last_xid) - 1) & ~ended)
#define OF_KEY(key) ((key) -> second_key : ~second_key & IDS_TO(ROWS))
#define LIKE(row) OF_KEY((row) & second_key)
#define OF_PARKED_KEYS ((parked & OF_KEY(0) -> OF_KEY(0) : 0) | (parked & OF_KEY(1) -> OF_KEY(1) : 0))
#define HEADS (FIRST(parked & OF_KEY(0)) | FIRST(parked & OF_KEY(1)))

/* What the world has seen. */
byte committed = 0;  /* rows */
byte published = 0;  /* rows */
byte earlier[ROWS];  /* to each row, those of its key that were committed before it */
bool fault = false;  /* something was published, and whoever did it will not settle it */
byte zombie = 0;     /* rows that a zombie has read and not sent yet */

/* The part of the lanes' memory that is cleared of transactions which have ended: fewer states, the same rule. */
byte candidate_p[2]; /* transactions that had not ended and may own an id up to the candidate's m */

byte i; /* a counter: zero between two steps */

/* With DRAINS, how often something may still happen; without, any number of times. */
#ifdef DRAINS
byte crashes = 1, failures = 2, stops = 1;
#define MAY(times) (times > 0)
#define DO(times) times--
#else
#define MAY(times) true
#define DO(times) skip
#endif

/* Without a floor a claim of nothing changes nothing. */
#ifdef FLOOR
#define WORTH_A_CLAIM true
#define SEQUENCE last_id
#else
#define WORTH_A_CLAIM outbox
#define SEQUENCE 0
#endif

/* What is right, and the mistakes that can be switched on. */

#ifdef MISTAKE_FLOOR_FROM_XMAX
byte last_completed = 0; /* the highest xid that has ended */
#define P (OPEN & IDS_TO(last_completed))
#else
#define P OPEN /* as the snapshot and the lane's own xid tell it: floor.pml spells it out */
#endif

#ifdef MISTAKE_SEND_PAST_A_FAILURE
#define NOT_SENT row
#else
#define NOT_SENT LIKE(row)
#endif

#ifdef MISTAKE_UNPARK_WITHOUT_ANOTHER_LOOK
#define NEXT (slot_holder == me -> 0 : FIRST(parked & LIKE(row)))
#else
#define NEXT FIRST(parked & LIKE(row))
#endif

#ifdef MISTAKE_SKIP_LOCKED_CHOOSES_THE_ROW
#define FIRST_PARKED(key) FIRST(parked & OF_KEY(key) & ~row_locks)
#else
#define FIRST_PARKED(key) (HEADS & OF_KEY(key) & due)
#endif

#ifdef MISTAKE_CLAIM_ROWS_INSTEAD_OF_SLOTS
byte claimed = 0; /* rows */
#define CLAIMABLE(rows) ((rows) & ~claimed)
#else
#define CLAIMABLE(rows) (rows)
#endif

inline publish(row) {
    assert(!(published & row) || fault); /* published twice without a fault */
    for (i : 0 .. ROWS - 1) {
        if
        :: BIT(i) == row -> assert(!(earlier[i] & ~published)) /* published before an earlier row of its key */
        :: else
        fi
    };
    i = 0;
    published = published | row
}

inline insert(its_key) {
    key = its_key;
    key_locked[key] = true;
    mine = mine | BIT(last_id);
    if
    :: key -> second_key = second_key | BIT(last_id)
    :: else
    fi;
    last_id++;
    printf("transaction %d draws the id %d for a row of key %d\n", t + 1, last_id, key + 1)
}

inline end_transaction() {
    ended = ended | BIT(t);
    candidate_p[0] = candidate_p[0] & ~ended;
    candidate_p[1] = candidate_p[1] & ~ended;
#ifdef MISTAKE_FLOOR_FROM_XMAX
    last_completed = MAX(last_completed, t + 1);
#endif
    if
    :: mine -> key_locked[key] = false
    :: else
    fi;
    mine = 0;
    key = 0
}

/* A transaction writes rows of one key, whose lock it takes before it draws ids and holds until it has ended. */
proctype Writer(byte t) {
    byte mine = 0; /* rows */
    bit key;

#ifdef MISTAKE_ID_BEFORE_XID
    /* The column that draws the id stands before the one that draws the xid. */
    if
    :: atomic { last_id < ROWS && !key_locked[0] -> insert(0) }
    :: true
    fi;
#endif
    /* The first insert draws the xid, then an id. Writers are numbered in the order in which they come to this. */
    atomic { last_xid == t -> last_xid++; printf("transaction %d draws its xid\n", t + 1) };
    do
    :: atomic { last_id < ROWS && mine -> insert(key) }
#ifdef MISTAKE_KEYS_NOT_SERIALISED
    :: atomic { last_id < ROWS && !mine -> insert(0) }
#else
    :: atomic { last_id < ROWS && !mine && !key_locked[0] -> insert(0) }
    :: atomic { last_id < ROWS && !mine && !key_locked[1] && last_id -> insert(1) } /* the first key is written first */
#endif
    :: d_step {
        true ->
        printf("transaction %d commits rows {%d}\n", t + 1, mine);
        for (i : 0 .. ROWS - 1) {
            if
            :: HAS(mine, i) -> earlier[i] = (committed | mine & IDS_TO(i)) & OF_KEY(key)
            :: else
            fi
        };
        i = 0;
        committed = committed | mine;
        outbox = outbox | mine;
        end_transaction()
    }; break
    :: d_step { mine -> printf("transaction %d rolls back\n", t + 1); end_transaction() }; break
    od
}

/* READ, in one snapshot: rows above the floor, up to a limit, and which of them have parked keys. */
inline read() {
#ifdef FLOOR
    assert(!(outbox & IDS_TO(level))); /* a row that is there is not read */
#endif
    rows = CLAIMABLE(outbox & ~IDS_TO(level));
    for (i : 1 .. BATCH) { batch = batch | FIRST(rows & ~batch) };
    i = 0;
    rows = batch;
#ifndef MISTAKE_LOOK_AT_PARKED_BEFORE_LOCK
    looked = OF_PARKED_KEYS;
#endif
    held = rows & looked;
    rows = rows & ~held;
    looked = 0;
    printf("lane %d reads rows {%d}\n", me, batch);
    if
    :: held -> printf("lane %d finds a parked key and will hold back rows {%d}\n", me, held)
    :: else
    fi
}

/* An earlier claim's candidate becomes the floor, but of no row that was seen; a new one is taken. */
inline raise_floor() {
    if
    :: candidate ->
        level = 0;
        do
        :: level < candidate_m && !HAS(batch, level) -> level++
        :: else -> break
        od;
        printf("lane %d has the floor %d\n", me, level)
    :: else
    fi;
    candidate = true;
    candidate_m = m;
    candidate_p[me - 1] = P;
    printf("lane %d has a candidate: m = %d, in P transactions {%d}\n", me, candidate_m, candidate_p[me - 1])
}

inline send(its_key) {
    row = FIRST(rows & OF_KEY(its_key));
    printf("lane %d publishes rows {%d}\n", me, row);
    publish(row);
    acknowledged = acknowledged | row;
    rows = rows & ~row;
    row = 0
}

/* After the first failure of a key, the rest of it is not sent. It stays in the outbox, and the next claim parks it. */
inline refuse(its_key) {
    row = FIRST(rows & OF_KEY(its_key));
    printf("lane %d fails with rows {%d}\n", me, row);
    failed = failed | row;
    rows = rows & ~NOT_SENT;
    row = 0
}

/* Published, but the answer did not come: that is a failure, too. */
inline lose_answer(its_key) {
    row = FIRST(rows & OF_KEY(its_key));
    printf("lane %d publishes rows {%d} and gets no answer\n", me, row);
    publish(row);
    fault = true;
    refuse(its_key)
}

/* The transaction ends, and its locks are free. */
inline leave() {
    if
    :: slot_holder == me -> slot_holder = 0
    :: else
    fi;
#ifdef MISTAKE_CLAIM_ROWS_INSTEAD_OF_SLOTS
    claimed = claimed & ~batch;
#endif
    m = 0;
    batch = 0;
    rows = 0;
    acknowledged = 0;
    failed = 0;
    held = 0
}

/* Delete what was acknowledged; park what failed, and what has a parked key behind it; COMMIT. */
inline settle() {
    printf("lane %d settles: deletes rows {%d}, parks rows {%d}\n", me, acknowledged, failed | held);
    outbox = outbox & ~acknowledged;
    row = (failed | held) & outbox;
    for (i : 0 .. 1) {
        assert(!(row & OF_KEY(i)) || FIRST(row & OF_KEY(i)) > (parked & OF_KEY(i))) /* parked out of order */
    };
    i = 0;
    parked = parked | row;
    outbox = outbox & ~row;
    due = due | row & failed;
    row = 0;
    check_heads();
#ifdef MISTAKE_REMEMBER_HIGHEST_ID
    for (i : 1 .. ROWS) {
        if
        :: HAS(batch, i - 1) -> level = MAX(level, i)
        :: else
        fi
    };
    i = 0;
#endif
    leave()
}

/* With DRAINS this is left to the search for runs that stand still. */
inline check_heads() {
#ifndef DRAINS
    assert(!(HEADS & ~due)) /* parked and never tried again */
#else
    skip
#endif
}

/* The connection is lost, with the transaction and the lane's memory. */
inline lose_connection() {
    level = 0;
    candidate = false;
    candidate_m = 0;
    candidate_p[me - 1] = 0;
    leave()
}

proctype Lane(byte me) {
    byte level = 0;         /* the floor */
    bool candidate = false;
    byte candidate_m = 0;   /* the sequence's last value */
    byte m = 0;             /* the same, read in the statement that locks */
    byte batch, rows, held; /* rows: all that were read, those to send, those of parked keys */
    byte acknowledged, failed; /* rows */
    byte looked, row;       /* zero between two steps, but for a mistake */

end_idle:
    do
    ::
#if defined(MISTAKE_LOCK_AND_READ_IN_ONE_SNAPSHOT)
        d_step { outbox -> read() };
        if
        :: d_step { !slot_holder && !slot_waiters -> slot_holder = me; printf("lane %d locks the slot\n", me) }
        :: d_step { slot_holder || slot_waiters -> leave() }; goto end_idle
        fi;
#elif defined(MISTAKE_CLAIM_ROWS_INSTEAD_OF_SLOTS)
        d_step { CLAIMABLE(outbox) -> read(); claimed = claimed | batch };
#else
#ifdef MISTAKE_LOOK_AT_PARKED_BEFORE_LOCK
        d_step { outbox -> looked = OF_PARKED_KEYS; printf("lane %d looks which keys are parked\n", me) };
end_looked:
#endif
        /* 1. LOCK, in a statement of its own, which also reads the sequence. */
        d_step {
            !slot_holder && !slot_waiters && WORTH_A_CLAIM -> slot_holder = me;
            m = SEQUENCE;
            printf("lane %d locks the slot\n", me)
        };
        /* 2. READ. 3. and 4. The floor. */
        atomic {
            read();
#if defined(FLOOR) && !defined(MISTAKE_REMEMBER_HIGHEST_ID)
            if
            :: !(candidate_p[me - 1] & OPEN) -> raise_floor()
            :: true /* not ripe; it may be another relay's xid that is open */
            fi
#endif
        };
#endif
        /* 5. PUBLISH: side by side what has different keys, one after the other what has the same. */
        do
        :: d_step { rows & OF_KEY(0) -> send(0) }
        :: d_step { rows & OF_KEY(1) -> send(1) }
#ifdef PARKING
        :: d_step { MAY(failures) && (rows & OF_KEY(0)) -> DO(failures); refuse(0) }
        :: d_step { MAY(failures) && (rows & OF_KEY(1)) -> DO(failures); refuse(1) }
        :: d_step { MAY(failures) && (rows & OF_KEY(0)) -> DO(failures); lose_answer(0) }
        :: d_step { MAY(failures) && (rows & OF_KEY(1)) -> DO(failures); lose_answer(1) }
        :: d_step { MAY(failures) && rows -> DO(failures); rows = 0; printf("lane %d has passed its deadline\n", me) }
#endif
#ifdef ZOMBIE
        :: d_step {
            MAY(stops) && rows && !zombie -> DO(stops);
            printf("lane %d is stopped and has lost its locks; a zombie holds rows {%d}\n", me, rows);
            fault = true;
            zombie = rows;
            lose_connection()
        }; break
#endif
        :: d_step {
            MAY(crashes) -> DO(crashes);
            printf("lane %d crashes\n", me);
            fault = fault || acknowledged;
            lose_connection()
        }; break
        /* 6. SETTLE. */
        :: d_step { !rows -> settle() }; break
        od
    od
}

inline let_go() {
    row_locks = row_locks & ~row;
    row = 0;
    if
    :: slot_holder == me -> slot_holder = 0
    :: else
    fi
}

/* Delete the row, make the next one of its key due, COMMIT. */
inline settle_retry() {
    printf("retry %d deletes rows {%d}\n", me, row);
    parked = parked & ~row;
    due = due & ~row | NEXT;
    check_heads();
    let_go()
}

inline crash_published() {
    printf("retry %d crashes\n", me);
    fault = true;
    let_go()
}

#define TELL_LOCK printf("retry %d locks rows {%d}\n", me, row)

inline find(key) {
    row = FIRST_PARKED(key);
    printf("retry %d finds rows {%d}\n", me, row)
}

/* Tries the first row of a parked key, without the slot lock. */
proctype Retry(byte me) {
    byte row = 0;

end_idle:
    do
    ::
        /* A plain read finds the first row of a key. (One that is locked now would be left alone.) */
        if
        :: d_step { FIRST_PARKED(0) & ~row_locks -> find(0) }
        :: d_step { FIRST_PARKED(1) & ~row_locks -> find(1) }
        fi;
        /* That row is locked, if it is still there and nobody else has it. */
        if
        :: d_step { parked & row & ~row_locks -> row_locks = row_locks | row; TELL_LOCK }
        :: d_step { !(parked & row & ~row_locks) -> row = 0 }; goto end_idle
        fi;
        if
        :: d_step { true -> printf("retry %d publishes rows {%d}\n", me, row); publish(row) }
        :: d_step { MAY(failures) -> DO(failures); let_go() }; goto end_idle
        :: d_step {
            MAY(failures) -> DO(failures);
            printf("retry %d publishes rows {%d} and gets no answer\n", me, row);
            publish(row);
            fault = true;
            let_go()
        }; goto end_idle
#ifdef ZOMBIE
        :: d_step {
            MAY(stops) && !zombie -> DO(stops);
            printf("retry %d is stopped and has lost its locks; a zombie holds rows {%d}\n", me, row);
            fault = true;
            zombie = row;
            let_go()
        }; goto end_idle
#endif
        :: d_step { MAY(crashes) -> DO(crashes); printf("retry %d crashes\n", me); let_go() }; goto end_idle
        fi;
        if
        :: d_step { parked & LIKE(row) & ~row -> settle_retry() } /* others wait behind it */
#ifdef MISTAKE_UNPARK_WITHOUT_SLOT_LOCK
        :: d_step { !(parked & LIKE(row) & ~row) -> settle_retry() }
#else
        :: d_step { !(parked & LIKE(row) & ~row) -> slot_waiters++; printf("retry %d waits for the slot\n", me) };
            /* It is the last one: the slot lock comes first, and then another look. */
            if
            :: d_step { !slot_holder -> slot_waiters--; slot_holder = me; settle_retry() }
            :: d_step { MAY(crashes) -> DO(crashes); slot_waiters--; crash_published() }
            fi
#endif
        :: d_step { MAY(crashes) -> DO(crashes); crash_published() }
        fi
    od
}

#ifdef ZOMBIE
inline send_late(key) {
    row = FIRST(zombie & OF_KEY(key));
    printf("the zombie publishes rows {%d}\n", row);
    publish(row);
    zombie = zombie & ~row;
    row = 0
}

active proctype Zombie() {
    byte row = 0;

end_none:
    do
    :: d_step { zombie & OF_KEY(0) -> send_late(0) }
    :: d_step { zombie & OF_KEY(1) -> send_late(1) }
    :: d_step { zombie & OF_KEY(0) -> zombie = zombie & ~OF_KEY(0) } /* it fails: the rest of the key is not sent */
    :: d_step { zombie & OF_KEY(1) -> zombie = zombie & ~OF_KEY(1) }
    od
}
#endif

#ifdef DRAINS
/* This waits outside an end state: a search for invalid end states finds a run that stands still before all is done. */
active proctype Drained() {
    ended == BIT(TXS) - 1 && !outbox && !parked && published == committed
}
#endif

init {
    atomic {
        for (i : 0 .. TXS - 1) { run Writer(i) };
        run Lane(1);
        run Lane(2);
#ifdef PARKING
        for (i : 1 .. RETRIES) { run Retry(2 + i) };
#endif
        i = 0
    }
}
